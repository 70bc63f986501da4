#!/usr/bin/env python3
"""Reads `cargo metadata` from standard input and checks every dependency's licence and source: check-licences.py deny.toml.

A small stand-in where cargo-deny is not installed; the allowed licences are those of deny.toml.
"""
import json
import re
import sys

CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"


def allowed(expression: str, licences: set[str]) -> bool:
    """SPDX: one side of every OR must be wholly allowed. The slash is cargo's old way of writing OR."""
    expression = expression.replace("/", " OR ").strip()
    tokens = re.findall(r"\(|\)|[^\s()]+", expression)

    def parse_or(i):
        value, i = parse_and(i)
        while i < len(tokens) and tokens[i] == "OR":
            right, i = parse_and(i + 1)
            value = value or right
        return value, i

    def parse_and(i):
        value, i = parse_one(i)
        while i < len(tokens) and tokens[i] == "AND":
            right, i = parse_one(i + 1)
            value = value and right
        return value, i

    def parse_one(i):
        if tokens[i] == "(":
            value, i = parse_or(i + 1)
            return value, i + 1
        name = tokens[i]
        if i + 2 < len(tokens) and tokens[i + 1] == "WITH":
            return f"{name} WITH {tokens[i + 2]}" in licences, i + 3
        return name in licences, i + 1

    return parse_or(0)[0]


def main() -> None:
    text = open(sys.argv[1], encoding="utf-8").read()
    block = re.search(r"^allow = \[(.*?)\]", text, re.S | re.M)
    licences = set(re.findall(r'"([^"]+)"', block.group(1)))
    wrong = []
    packages = json.load(sys.stdin)["packages"]
    for package in packages:
        name = f"{package['name']} {package['version']}"
        if package["source"] not in (None, CRATES_IO) and not (package["source"] or "").startswith("registry+"):
            wrong.append(f"{name}: comes from {package['source']}")
        if package["source"] and not package["license"]:
            wrong.append(f"{name}: names no licence")
        elif package["license"] and not allowed(package["license"], licences):
            wrong.append(f"{name}: licence {package['license']} is not in deny.toml")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"check: {len(packages)} packages, licences and sources in order")


if __name__ == "__main__":
    main()
