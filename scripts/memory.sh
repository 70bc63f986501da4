# To be sourced: temporary folders in memory where there is plenty, until the shell ends. The databases of the tests are made and thrown
# away by the hundred, and on a disk their small files cost about as much as everything else that is done with them. Whoever has set
# TMPDIR keeps it.
in_memory() {
  local free available
  free=$(df --output=avail -BM /dev/shm 2>/dev/null | tail -n 1 | tr -dc 0-9)
  available=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
  [ "${free:-0}" -ge 8192 ] && [ "${available:-0}" -ge 8192 ] || return 1
  # Programs are put there, too, and run.
  case ",$(findmnt -no OPTIONS -T /dev/shm)," in *,noexec,*) return 1 ;; esac
  [ -w /dev/shm ]
}
if [ -z "${TMPDIR:-}" ] && in_memory; then
  TMPDIR=$(mktemp -d /dev/shm/godwit.XXXXXX)
  export TMPDIR
  # The user of the databases must be able to walk into it.
  chmod 1777 "$TMPDIR"
  trap 'rm -rf "$TMPDIR"' EXIT
fi
