# Sourced by the scripts beside it, never run: where they keep what they fetch, and how they fetch it.

# $cache: $GODWIT_CACHE, else /var/cache/godwit for root (the database user must be able to read it), else ~/.cache/godwit. The
# programs look there too (proxy/src/drivers/process/cluster.rs).
if [ -n "${GODWIT_CACHE:-}" ]; then cache=$GODWIT_CACHE
elif [ "$(id -u)" -eq 0 ]; then cache=/var/cache/godwit
else cache=$HOME/.cache/godwit; fi

# The lock stays here (sudo closes it): a service that a package starts would keep it.
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@" 9>&-; else sudo "$@"; fi; }

# Waits until no other one puts things into the cache folder, until the (sub)shell ends: what was to be put there may be there by then.
alone() {
  mkdir -p "$cache"
  exec 9>"$cache/.lock"
  if ! flock --nonblock 9; then
    echo "setup: another set-up is at work: waiting for it" >&2
    flock 9
  fi
}

# Installs Debian's packages. Nothing on standard output: scripts print there where things are.
install_packages() {
  echo "setup: installing $*" >&2
  as_root apt-get update -qq >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# Puts the named .deb files into the current folder without installing them.
download_packages() {
  apt-get -o APT::Sandbox::User=root -qq download "$@" >&2 || {
    as_root apt-get update -qq >&2
    apt-get -o APT::Sandbox::User=root -qq download "$@" >&2
  }
}

# python_environment FOLDER WHAT <REQUIREMENTS: a virtual environment with just these; made anew when they have changed.
python_environment() {
  local folder=$1 wanted
  wanted=$(cat)
  if has_requirements; then return; fi
  (
    alone
    if has_requirements; then exit; fi
    python3 -c 'import ensurepip' >/dev/null 2>&1 || install_packages python3-venv
    echo "setup: fetching $2" >&2
    rm -rf "$folder"
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: -r /dev/stdin <<<"$wanted" >&2
    # Last: without it the folder counts for nothing.
    echo "$wanted" >"$folder/requirements.txt"
  )
}
has_requirements() { [ "$wanted" = "$(cat "$folder/requirements.txt" 2>/dev/null)" ]; }
