#!/usr/bin/env bash
# One Debian package of Godwit, by its contents: check-deb.sh FILE. With INSTALL=1 (as root, where no godwit is installed) it is also
# installed, installed again under a node that runs, and purged. systemd is played by a script that knows this one process, and the
# databases do not answer: what is looked at is the package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
deb=$(realpath "${1:?which file}")
work=$(mktemp -d)
node=
trap 'end' EXIT
end() {
  if [ -n "$node" ]; then kill -KILL "$node" && wait "$node" || true; fi
  if [ -n "${our_systemd:-}" ]; then rmdir /run/systemd/system; fi
  if [ -n "${installed:-}" ]; then dpkg --purge godwit >/dev/null || true; fi
  if [ -n "${our_user:-}" ]; then userdel godwit || true; fi
  rm -rf "$work"
}
failed=0
wrong() { echo "check-deb: $*" >&2; failed=1; }

dpkg-deb --contents "$deb" | sed 's#\./usr/lib/systemd#./lib/systemd#' >"$work/contents"
for path in usr/bin/godwit etc/godwit/godwit.yaml etc/godwit/policies/latency-first.yaml usr/share/man/man1/godwit.1.gz \
  usr/share/man/man1/godwit-migrate.1.gz lib/systemd/system/godwit.service usr/share/bash-completion/completions/godwit \
  usr/share/zsh/vendor-completions/_godwit usr/share/doc/godwit/copyright usr/share/doc/godwit/examples/godwit.yaml; do
  grep -q " \./$path\$" "$work/contents" || wrong "it lacks $path"
done
# Everything is root's, nothing can be written by others, one file can be executed.
awk '$2 != "root/root" && $2 != "0/0" { print "owned by " $2 ": " $NF }
  { wanted = /^d/ ? "drwxr-xr-x" : $NF == "./usr/bin/godwit" ? "-rwxr-xr-x" : "-rw-r--r--" }
  $1 != wanted { print $1 ": " $NF }' "$work/contents" >"$work/modes"
[ ! -s "$work/modes" ] || wrong "$(cat "$work/modes")"

dpkg-deb --raw-extract "$deb" "$work/package"
control=$work/package/DEBIAN
(cd "$work/package" && find etc -type f -printf '/%p\n' | sort) >"$work/etc"
sort "$control/conffiles" | diff - "$work/etc" || wrong "conffiles are not what lies in /etc"
grep -q '^Depends:.*libc6' "$control/control" || wrong "it depends on no libc6: $(grep ^Depends "$control/control")"
for script in preinst postinst prerm postrm; do
  [ -e "$control/$script" ] || continue
  sh -n "$control/$script" || wrong "$script"
  ! grep -n '#DEBHELPER#' "$control/$script" || wrong "$script is not filled in"
done
find "$work/package" -name '*.gz' -exec gzip --test {} + || wrong "what is compressed"
for page in "$work"/package/usr/share/man/man1/*.gz; do
  [ -z "$(man --warnings --local-file "$page" 2>&1 >/dev/null)" ] || wrong "the manual page $(basename "$page")"
done

# Of the machine that built it nothing is told. That is for packages that are shipped, of profile dist.
version=$(sed -n 's/^Version: //p' "$control/control")
binary=$work/package/usr/bin/godwit
[[ $version != *~* ]] || mv "$binary" "$work/godwit"
for place in "$PWD" "${CARGO_HOME:-$HOME/.cargo}" "${RUSTUP_HOME:-$HOME/.rustup}"; do
  found=$(grep --recursive --text --files-with-matches --fixed-strings "$place" "$work/package" | sed "s#$work/package##") || continue
  wrong "$place is named in" $found
done
if [[ $version == *~* ]]; then
  mv "$work/godwit" "$binary"
else
  ! "$binary" check <(printf 'node: {traces: {url: "http://127.0.0.1:4318/", sample: 1%%}}\n') 2>&1 | grep 'sends no traces' ||
    wrong "it was built without otlp"
fi
! readelf --section-headers --wide "$binary" | grep '\.debug_info' || wrong "the binary has its debug information"

if [ -z "${INSTALL:-}" ] || [ $failed -ne 0 ]; then exit $failed; fi

# ---- Installed.
status=$(dpkg-query --show --showformat '${db:Status-Status}' godwit 2>/dev/null || true)
if [ -n "$status" ] && [ "$status" != not-installed ] || [ -e /etc/godwit ] || [ -e /var/lib/godwit ] || [ -e /var/log/godwit ]; then
  wrong "godwit is on this machine already: nothing was installed"
  exit 1
fi
getent passwd godwit >/dev/null || our_user=1
installed=1
apt-get install --yes --quiet --no-install-recommends "$deb" >/dev/null
/usr/bin/godwit --version
# Executes: no process is between.
as_godwit=(setpriv --reuid godwit --regid godwit --init-groups --no-new-privs)
# It waits for a service: that, and nothing else, is missing.
said=$("${as_godwit[@]}" /usr/bin/godwit check /etc/godwit/godwit.yaml 2>&1) && wrong "a node without a service starts"
[ "$(grep -c godwit.yaml: <<<"$said")" = 1 ] && grep -q 'has no resource' <<<"$said" || wrong "the package's configuration: $said"
[ "$(stat --format %U:%a /var/lib/godwit)" = godwit:700 ] || wrong "/var/lib/godwit"
for folder in /etc/godwit /etc/godwit/policies; do
  [ "$(stat --format %U:%G:%a $folder)" = root:godwit:750 ] || wrong "$folder is $(stat --format %U:%G:%a $folder)"
done

# ---- A node runs from it.
read -r admin front nobody < <(python3 -c 'import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in held))')
sed -i "s/^  zone: here/&\n  admin: { listen: 127.0.0.1:$admin }/; /^resources/d" /etc/godwit/godwit.yaml
cat >>/etc/godwit/godwit.yaml <<YAML
resources:
  orders:
    fronts: { http: { listen: 127.0.0.1:$front } }
    placements:
      here: { http: ["127.0.0.1:$nobody"], postgres: { dsn: "postgres://godwit@127.0.0.1:$nobody/here" } }
      there: { http: ["127.0.0.1:$nobody"], postgres: { dsn: "postgres://godwit@127.0.0.1:$nobody/there" } }
    primary: here
    policy: latency-first
YAML
cp /etc/godwit/godwit.yaml "$work/godwit.yaml"
log=$work/log
"${as_godwit[@]}" /usr/bin/godwit run --config /etc/godwit/godwit.yaml >"$log" 2>&1 </dev/null &
node=$!
# Until a deadline, and only while the node runs.
await() {
  local what=$1 deadline=$((SECONDS + 30))
  shift
  until "$@"; do
    if ! kill -0 "$node" 2>/dev/null || [ $SECONDS -gt $deadline ]; then
      echo "check-deb: waited in vain: $what" >&2
      tail -20 "$log" >&2
      exit 1
    fi
    sleep 0.1
  done
}
lives() { /usr/bin/godwit --admin "127.0.0.1:$admin" ready --live >/dev/null 2>&1; }
executes_what_is_installed() { [ "$(stat --dereference --format %d:%i "/proc/$node/exe")" = "$(stat --format %d:%i /usr/bin/godwit)" ]; }
await "the node" lives
executes_what_is_installed || wrong "the node is another program"

# ---- Installed again under it: it becomes the new file.
mkdir "$work/bin"
cat >"$work/bin/systemctl" <<SH
#!/bin/sh
echo "\$*" >>"$work/asked"
case "\$*" in
  *daemon-reload) ;;
  "--quiet is-active godwit.service") kill -0 $node ;;
  "stop godwit.service") ;;
  "kill --kill-who=main --signal=QUIT godwit.service") kill -QUIT $node ;;
  *) echo "systemctl \$*: this is not played" >&2; exit 1 ;;
esac
SH
chmod 755 "$work/bin/systemctl"
[ -d /run/systemd/system ] || { mkdir -p /run/systemd/system; our_systemd=1; }
again() { PATH=$work/bin:$PATH dpkg --install "$deb" >/dev/null; }
before=$(stat --dereference --format %d:%i "/proc/$node/exe")
again
await "the new program in the old process" executes_what_is_installed
[ "$(stat --format %d:%i /usr/bin/godwit)" != "$before" ] || wrong "nothing was installed again"
[[ $(readlink "/proc/$node/exe") = /usr/bin/godwit ]] || wrong "it executes $(readlink "/proc/$node/exe")"
await "the node after its upgrade" lives
[ "$(grep -c 'the program is replaced' "$log")" = 1 ] || wrong "it was not replaced once"
tail -1 "$work/asked" | grep -q '^kill' || wrong "systemctl was asked: $(cat "$work/asked")"
cmp /etc/godwit/godwit.yaml "$work/godwit.yaml" || wrong "the upgrade changed the configuration"

# ---- Where it refuses, the upgrade is done all the same, and the old program goes on.
echo 'no_such_key: 1' >>/etc/godwit/godwit.yaml
again
await "the refusal" grep -q 'the program is not replaced now' "$log"
! executes_what_is_installed || wrong "it was replaced in spite of its configuration"
lives || wrong "it refused, and lives no longer"
cp "$work/godwit.yaml" /etc/godwit/godwit.yaml
PATH=$work/bin:$PATH systemctl kill --kill-who=main --signal=QUIT godwit.service
await "the new program, asked again" executes_what_is_installed
await "the node, asked again" lives
# It is live before it has begun; only then does it end in good order.
runs_again() { [ "$(grep -c '"godwit runs"' "$log")" = 3 ]; }
await "the node's beginning" runs_again
kill -TERM "$node"
wait "$node" || wrong "the node ended with $?"
node=

# ---- Purged. Its log folder is made by systemd, which is played.
install -d -o godwit -g godwit /var/log/godwit
touch /var/log/godwit/access.log
PATH=$work/bin:$PATH dpkg --purge godwit >/dev/null
installed=
for path in /usr/bin/godwit /etc/godwit /var/lib/godwit /var/log/godwit /lib/systemd/system/godwit.service /usr/share/doc/godwit; do
  [ ! -e "$path" ] || wrong "$path is left after a purge"
done
[ $failed -eq 0 ] && echo "check-deb: installed, upgraded twice under a node, purged: $(basename "$deb")"
exit $failed
