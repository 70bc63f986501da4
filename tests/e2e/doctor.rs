//! `godwit doctor`, asked of a running node, about two databases of different majors.

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};
use godwit::controller::doctor::DoctorView;
use godwit::demo::zone::{GODWIT_ROLE, Playground, RESOURCE, SUPERUSER};

use crate::leader::{Leader, PROGRAM, connect, options};

struct Answer {
    code: Option<i32>,
    text: String,
}

async fn doctor(admin: SocketAddr, arguments: &[&str]) -> Result<Answer> {
    let mut command = tokio::process::Command::new(PROGRAM);
    command.args(["--admin", &admin.to_string(), "doctor"]).args(arguments);
    let output = command.output().await?;
    Ok(Answer { code: output.status.code(), text: String::from_utf8(output.stdout)? })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doctor_says_no_go_until_every_blocker_is_mended() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let primary = connect(near).await?;
    primary.batch_execute("CREATE TABLE keyless (id int NOT NULL)").await?;
    let superuser = replicator::postgres::connect(&far.dsn(SUPERUSER), "a person").await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.until("the node answers", |_| true).await?;

    let answer = doctor(playground.admin, &[RESOURCE]).await?;
    ensure!(answer.code == Some(4), "{}", answer.text);
    let (here, there) = (&near.name, &far.name);
    for line in [
        format!("NO-GO  {RESOURCE}: {here} → {there}\n"),
        format!("blocker  {here}: public.keyless: updates and deletes cannot be replicated"),
        "   mend  ALTER TABLE public.keyless ADD PRIMARY KEY".into(),
        format!("warning  {there}: max_slot_wal_keep_size: is unlimited"),
        // What a source must fulfil is asked of the shadow too: the way back starts there.
        format!("warning  {there}: {SUPERUSER}: its sessions are superuser"),
    ] {
        ensure!(answer.text.contains(&line), "no {line:?} in {}", answer.text);
    }

    // Of a resource that was taken out of the files, in whichever database; another program's slot is its own matter.
    for slot in ["godwit_taken_out_g3", "others"] {
        replicator::postgres::slot::create_slot(&primary, slot).await?;
    }
    let answer = doctor(playground.admin, &[RESOURCE]).await?;
    let line = format!("warning  {here}: godwit_taken_out_g3: nobody reads this slot, it keeps ");
    ensure!(
        answer.text.contains(&line) && !answer.text.contains(": others: nobody reads"),
        "{}",
        answer.text
    );
    ensure!(!answer.text.contains(&format!(": godwit_{RESOURCE}_g")), "{}", answer.text);

    drop(superuser);
    primary.batch_execute("ALTER TABLE keyless ADD PRIMARY KEY (id)").await?;
    for slot in ["godwit_taken_out_g3", "others"] {
        replicator::postgres::slot::drop_slot(&primary, slot).await?;
    }
    for zone in [near, far] {
        let server = replicator::postgres::connect(&zone.dsn(SUPERUSER), "an administrator").await?;
        server.batch_execute("ALTER SYSTEM SET max_slot_wal_keep_size = '64GB'").await?;
        server.batch_execute("SELECT pg_reload_conf()").await?;
    }
    // A shadow that follows is Godwit's own copy, and no obstacle. Of all resources: there is one.
    leader.ready().await?;
    let answer = doctor(playground.admin, &["-o", "json"]).await?;
    let views: Vec<DoctorView> = serde_json::from_str(&answer.text)?;
    let [view] = views.as_slice() else { bail!("one resource: {}", answer.text) };
    ensure!((answer.code, view.go) == (Some(0), true), "{}", answer.text);
    ensure!(view.findings.iter().all(|finding| finding.severity == "warning"), "{}", answer.text);
    ensure!(!answer.text.contains("max_slot_wal_keep_size"), "{}", answer.text);

    // The schemas drift apart: what differs stands among the findings, with the SQL.
    primary.batch_execute("CREATE INDEX late ON customers (name)").await?;
    let answer = doctor(playground.admin, &[RESOURCE]).await?;
    ensure!(answer.code == Some(4), "{}", answer.text);
    for line in [
        format!("blocker  {here}, {there}: public.customers: index late added on {here}"),
        format!(
            "   mend  godwit schema sync {RESOURCE}; or on the shadow: CREATE INDEX late ON public.customers"
        ),
    ] {
        ensure!(answer.text.contains(&line), "no {line:?} in {}", answer.text);
    }
    let administrator = replicator::postgres::connect(&near.dsn(SUPERUSER), "an administrator").await?;
    administrator.batch_execute("DROP INDEX late").await?;
    // A right that is taken away is missed at once, with the grant that mends it.
    administrator.batch_execute(&format!("REVOKE pg_signal_backend FROM {GODWIT_ROLE}")).await?;
    let answer = doctor(playground.admin, &[RESOURCE]).await?;
    ensure!(answer.code == Some(4), "{}", answer.text);
    let grant = format!("mend  GRANT pg_signal_backend TO {GODWIT_ROLE}");
    ensure!(answer.text.contains(&grant) && !answer.text.contains("index late"), "{}", answer.text);

    far.path.cut();
    let answer = doctor(playground.admin, &[RESOURCE]).await?;
    ensure!(answer.code == Some(4), "{}", answer.text);
    ensure!(answer.text.contains(&format!("{there}: database: cannot be examined")), "{}", answer.text);
    far.path.restore();
    // Nothing follows the schema by itself here, and the stream meets what the shadow lacks.
    leader.until("the stream goes on", |view| view.replication.state == "streaming").await?;
    administrator.batch_execute("ALTER TABLE customers ADD COLUMN nick text").await?;
    primary.batch_execute("UPDATE customers SET nick = 'x' WHERE id = 1").await?;
    leader.until("the stream stands", |view| view.replication.state == "failed").await?;
    let answer = doctor(playground.admin, &[RESOURCE]).await?;
    let stands = format!("{here}, {there}: stream: stands still: ");
    let reseed = "column nick of public.customers is not on the target: it comes with the schema, or with its table anew (godwit reseed \
        RESOURCE --table 'public.customers')";
    ensure!(answer.code == Some(4) && answer.text.contains(&stands), "{}", answer.text);
    ensure!(answer.text.contains(reseed), "{}", answer.text);
    let answer = doctor(playground.admin, &["nothing-of-the-kind"]).await?;
    ensure!((answer.code, answer.text.as_str()) == (Some(1), ""), "{}", answer.text);
    Ok(())
}
