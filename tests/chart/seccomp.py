"""Runs a command under a seccomp profile of the OCI's form, as a container runtime would.

    seccomp.py PROFILE [--without CALL,CALL] COMMAND…
"""

import errno
import json
import os
import sys

import pyseccomp

COMPARE = {"SCMP_CMP_EQ": pyseccomp.EQ, "SCMP_CMP_MASKED_EQ": pyseccomp.MASKED_EQ}


def action(rule):
    allowed = {"SCMP_ACT_ALLOW": pyseccomp.ALLOW, "SCMP_ACT_ERRNO": pyseccomp.ERRNO(rule.get("errnoRet", errno.EPERM))}
    return allowed[rule["action"]]


def argument(rule):
    if rule["op"] == "SCMP_CMP_MASKED_EQ":
        return pyseccomp.Arg(rule["index"], pyseccomp.MASKED_EQ, rule["value"], rule["valueTwo"])
    return pyseccomp.Arg(rule["index"], COMPARE[rule["op"]], rule["value"])


def load(profile, without):
    """From here on this process and its children may do no more than the profile says."""
    default = pyseccomp.ERRNO(profile["defaultErrnoRet"])
    kernel_filter = pyseccomp.SyscallFilter(default)
    for rule in profile["syscalls"]:
        for name in rule["names"]:
            # What this machine has no such call for (or its libseccomp is too old to know) cannot be allowed.
            number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
            if number >= 0 and name not in without and action(rule) != default:
                kernel_filter.add_rule(action(rule), number, *map(argument, rule.get("args", [])))
    kernel_filter.load()


if __name__ == "__main__":
    path, command, without = sys.argv[1], sys.argv[2:], []
    if command[0] == "--without":
        without, command = command[1].split(","), command[2:]
    with open(path) as file:
        load(json.load(file), without)
    os.execv(command[0], command)
