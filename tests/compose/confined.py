"""Runs a command under the system call filter of a unit: ``confined.py UNIT COMMAND...``

Does what systemd does with ``SystemCallFilter``, ``SystemCallErrorNumber`` and
``MemoryDenyWriteExecute`` (by the kernel's own switch, where it has one), where no systemd runs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

PR_SET_MDWE = 65
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM


def members(group: str) -> set[str]:
    """Return the system calls of a group, with those of the groups in it."""
    if not group.startswith("@"):
        return {group}
    command = ["systemd-analyze", "syscall-filter", "--no-pager", group]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    words = [
        line.strip() for line in lines[1:] if line.strip() and not line.strip().startswith("#")
    ]
    return set().union(*map(members, words))


def allowed(unit: str) -> set[str]:
    """Return the system calls that a unit allows; later lines change earlier ones."""
    calls = members("@default")
    for sign, words in re.findall(r"^SystemCallFilter=(~?)(.*)$", unit, re.MULTILINE):
        named = set().union(*map(members, words.split()))
        calls = calls - named if sign else calls | named
    return calls


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_MDWE, 1, 0, 0, 0)
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(REFUSE))
    for name in allowed(Path(sys.argv[1]).read_text(encoding="utf-8")):
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            assert library.seccomp_rule_add(context, ALLOW, number, 0) == 0, name
    assert library.seccomp_load(context) == 0
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
