"""The process that runs a model's code: no network, no files, no processes, limits on the rest.

`code` starts this file as a script. It reads the program, gives up its rights, runs it and reports
the result. A seccomp filter of the Linux kernel refuses every call that opens a socket or a file
for writing, starts a process, signals another one or changes the system; resource limits bound
time, memory and threads. Reading files is allowed, as Python itself needs it. It leaves out other
systems than Linux on x86-64. It does not protect the tests from code that attacks them.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import os
import platform
import resource
import struct
import sys
import unittest
from typing import Any

ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
EPERM, EACCES, ENOSYS = 1, 13, 38
ARCH = 0xC000003E  # x86-64
X32 = 0x40000000  # calls of the x32 interface, which have other numbers
WRITES = 0x1 | 0x2 | 0x40 | 0x200 | 0x400000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE
THREAD = 0x10000  # CLONE_THREAD
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in the kernel's description of a call
LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06

REFUSED = {  # call: its number on x86-64
    "socket": 41, "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "kill": 62,
    "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
    "pidfd_open": 434, "pidfd_send_signal": 424, "pidfd_getfd": 438, "ptrace": 101,
    "process_vm_readv": 310, "process_vm_writev": 311, "io_uring_setup": 425,
    "io_uring_enter": 426, "io_uring_register": 427, "creat": 85, "truncate": 76, "rename": 82,
    "renameat": 264, "renameat2": 316, "mkdir": 83, "mkdirat": 258, "rmdir": 84, "link": 86,
    "linkat": 265, "unlink": 87, "unlinkat": 263, "symlink": 88, "symlinkat": 266, "chmod": 90,
    "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94,
    "fchownat": 260, "mknod": 133, "mknodat": 259, "utime": 132, "utimes": 235, "futimesat": 261,
    "utimensat": 280, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197,
    "lremovexattr": 198, "fremovexattr": 199, "setxattrat": 463, "removexattrat": 466,
    "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsmount": 432, "mount_setattr": 442, "unshare": 272,
    "setns": 308, "bpf": 321, "perf_event_open": 298, "add_key": 248, "request_key": 249,
    "keyctl": 250, "reboot": 169, "init_module": 175, "finit_module": 313, "delete_module": 176,
    "kexec_load": 246, "kexec_file_load": 320, "setrlimit": 160, "memfd_create": 319,
    "memfd_secret": 447, "shmget": 29, "msgget": 68, "mq_open": 240, "open_by_handle_at": 304,
    "userfaultfd": 323, "fanotify_init": 300, "swapon": 167, "swapoff": 168, "sethostname": 170,
    "setdomainname": 171, "settimeofday": 164, "clock_settime": 227, "acct": 163, "quotactl": 179,
    "syslog": 103, "flock": 73, "sched_setscheduler": 144, "sched_setparam": 142,
    "sched_setattr": 314, "sched_setaffinity": 203, "ioprio_set": 251, "migrate_pages": 256,
    "move_pages": 279, "process_madvise": 440, "process_mrelease": 448,
    "setpriority": 141, "ioperm": 173, "iopl": 172,
}  # fmt: skip
MISSING = {"clone3": 435, "openat2": 437}  # their arguments are in memory; libraries do without
OPEN, OPENAT, CLONE, PRLIMIT = 2, 257, 56, 302


def instructions() -> bytes:
    """The filter as a program of the kernel's packet filter."""
    code: list[tuple[int, int, int, int]] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, ARCH),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, ERRNO | EPERM),
    ]
    answers = dict.fromkeys(REFUSED.values(), EPERM)
    answers |= dict.fromkeys(MISSING.values(), ENOSYS)
    for number, error in answers.items():
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO | error)]
    for number, argument, mask, error in ((OPEN, 1, WRITES, EACCES), (OPENAT, 2, WRITES, EACCES)):
        code += _with_flags(number, argument, mask, error, refuse_if_set=True)
    code += _with_flags(CLONE, 0, THREAD, EPERM, refuse_if_set=False)
    code += _with_flags(PRLIMIT, 2, 0xFFFFFFFF, EPERM, refuse_if_set=True)
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *one) for one in code)


def _with_flags(
    number: int, argument: int, mask: int, error: int, *, refuse_if_set: bool
) -> list[tuple[int, int, int, int]]:
    """A call that is refused by flags in an argument."""
    first, second = (ALLOW, ERRNO | error) if refuse_if_set else (ERRNO | error, ALLOW)
    return [
        (EQUAL, 0, 5, number),
        (LOAD, 0, 0, ARGUMENTS + 8 * argument),
        (AND, 0, 0, mask),
        (EQUAL, 0, 1, 0),
        (RETURN, 0, 0, first),
        (RETURN, 0, 0, second),
    ]


class Filter(ctypes.Structure):
    """The kernel's `sock_fprog`."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def give_up_rights() -> None:
    """Apply the filter to this process, for good.

    Raises:
        OSError: the kernel has no such filter.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise OSError(f"not Linux on x86-64 but {sys.platform} on {platform.machine()}")
    code = instructions()
    program = Filter(len(code) // 8, code)
    library = ctypes.CDLL(None, use_errno=True)
    for arguments in ((38, 1, 0, 0, 0), (22, 2, ctypes.byref(program), 0, 0)):
        if library.prctl(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def limit(seconds: float, memory: float) -> None:
    """Limit CPU time, memory, file size and threads."""
    size, time = int(memory * 2**30), int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (time, time))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def main() -> None:
    """Run one program and its tests; the result is a line on the standard output."""
    request = json.loads(sys.stdin.buffer.read())
    results, silent = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    os.chdir("/")
    limit(request["seconds"], request["memory"])
    give_up_rights()
    os.write(results, b"ready ")
    names: dict[str, Any] = {"__name__": "program"}
    exec(compile(request["program"], "program", "exec"), names)
    exec(compile(request["tests"], "tests", "exec"), names)
    run_tests(names)
    os.write(results, request["token"].encode())


def run_tests(names: dict[str, Any]) -> None:
    """Run what the tests define: test cases of unittest, and functions test_...()."""
    for name, value in list(names.items()):
        if inspect.isclass(value) and issubclass(value, unittest.TestCase):
            suite = unittest.defaultTestLoader.loadTestsFromTestCase(value)
            result = unittest.TestResult()
            suite.run(result)
            if not result.wasSuccessful() or not result.testsRun:
                raise AssertionError(name)
        elif name.startswith("test_") and inspect.isfunction(value):
            value()


if __name__ == "__main__":
    main()
