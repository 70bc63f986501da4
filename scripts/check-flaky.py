#!/usr/bin/env python3
"""Tests that failed and then passed: forgiven where a machine was slow, not where something was lost.

usage: check-flaky.py JUNIT-FILE   (cargo-nextest's report, profile `whole`)
"""

import re
import sys
import xml.etree.ElementTree as ElementTree

# What no slow machine explains. Looked for where a test says why it failed, not in the logs below that.
BROKEN = re.compile(
    r"acknowledged|anomal|twice|doubled|altered|answered wrongly|\blost\b|\bgone\b|missing: |not strictly|took writes"
    r"|open are \[|stay different|differs?: |after its commit|not there once|nobody wrote|number of rows|on the primary any more"
    r"|was forwarded although|was written to|have the same rows|has every event",
    re.IGNORECASE,
)
# What was awaited did not come in time; its words say what that is, not what happened.
AWAITED = re.compile(r"waited in vain: (?!both have the same rows|the subscriber has every event).*")
REASON = re.compile(r"^(Error: |Caused by:|thread .*panicked at |\s+\d+: )")
BACKTRACE = re.compile(r"^(stack backtrace:|note: )", re.IGNORECASE | re.MULTILINE)


def reasons(failure):
    """The lines that say why: what a test returned with its causes, or the panic; the beginning of what follows too."""
    said = failure.findtext("system-err") or failure.get("message") or ""
    lines, found = BACKTRACE.split(said)[0].splitlines(), []
    for at, line in enumerate(lines):
        if REASON.match(line):
            found += lines[at : at + 3]
    return list(dict.fromkeys(line.strip() for line in found))


def main():
    broken = False
    for case in ElementTree.parse(sys.argv[1]).getroot().iter("testcase"):
        for failure in [*case.iter("flakyFailure"), *case.iter("flakyError")]:
            why = reasons(failure)
            name = f"{case.get('classname')} {case.get('name')}"
            if any(BROKEN.search(AWAITED.sub("", line)) for line in why):
                broken = True
                print(f"{name} passed when it was run again, but no slow machine explains this:", *why, sep="\n  ")
            else:
                print(f"{name} passed when it was run again:", *why[:4], sep="\n  ")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
