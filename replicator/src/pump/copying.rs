//! The source's side of the initial copy: slot, snapshot, schema, rows.

use std::path::PathBuf;

use futures_util::StreamExt;
use tokio::sync::mpsc;

use crate::copy;
use crate::error::Error;
use crate::lsn::Lsn;
use crate::postgres::stream::ExportedSlot;
use crate::postgres::{Dsn, connect, slot};
use crate::schema;
use crate::wire::{CopyTable, Frame, PIECE, StreamSpec};

/// Makes the slot anew and puts the whole copy into `frames`; waits whenever they are not taken. Gives the slot's
/// consistent point.
pub(super) async fn produce(
    dsn: &Dsn,
    bin: Option<PathBuf>,
    spec: &StreamSpec,
    frames: mpsc::Sender<Frame>,
) -> Result<Lsn, Error> {
    let gone = |_| Error::Link("the session ended".into());
    let client = connect(dsn, &format!("godwit copy {}", spec.slot)).await?;
    slot::ensure_publication(&client, &spec.publication).await?;
    // Left over from a copy that did not finish.
    slot::drop_slot(&client, &spec.slot).await?;
    let exported = ExportedSlot::create(dsn, &spec.slot).await?;
    copy::begin_snapshot(&client, &exported.snapshot).await?;
    let consistent_point = exported.consistent_point;
    drop(exported);
    let tables = copy::tables(&client).await?;
    let dump = schema::dump(dsn, bin.as_deref()).await?;
    frames
        .send(Frame::CopyBegin {
            consistent_point,
            tables: tables.len() as u32,
            rows_estimate: tables.iter().map(|table| table.rows_estimate).sum(),
        })
        .await
        .map_err(gone)?;
    send_schema(&frames, dump.pre_data, false).await?;
    for table in tables {
        let header = CopyTable {
            schema: table.schema.clone(),
            name: table.name.clone(),
            columns: table.columns.clone(),
        };
        frames.send(Frame::CopyTable(header)).await.map_err(gone)?;
        let mut rows = std::pin::pin!(copy::copy_out(&client, &table).await?);
        let mut data = bytes::BytesMut::new();
        while let Some(chunk) = rows.next().await {
            data.extend_from_slice(&chunk?);
            while data.len() >= PIECE {
                let data = data.split_to(PIECE).freeze();
                frames.send(Frame::CopyRows { data }).await.map_err(gone)?;
            }
        }
        if !data.is_empty() {
            frames.send(Frame::CopyRows { data: data.freeze() }).await.map_err(gone)?;
        }
        frames.send(Frame::CopyTableEnd).await.map_err(gone)?;
    }
    send_schema(&frames, dump.post_data, true).await?;
    frames.send(Frame::CopyEnd).await.map_err(gone)?;
    Ok(consistent_point)
}

async fn send_schema(frames: &mpsc::Sender<Frame>, sql: String, post: bool) -> Result<(), Error> {
    let mut rest = bytes::Bytes::from(sql);
    loop {
        let piece = rest.split_to(rest.len().min(PIECE));
        let last = rest.is_empty();
        frames
            .send(Frame::CopySchema { post, last, piece })
            .await
            .map_err(|_| Error::Link("the session ended".into()))?;
        if last {
            return Ok(());
        }
    }
}
