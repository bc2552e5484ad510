"""Runs a command to which the kernel refuses a call: refuse_call.py CALL ERRNO COMMAND [ARG ...]

A seccomp filter of this process, inherited by the command, answers CALL (one of those below) with
ERRNO (a name such as EPERM).
"""

import ctypes
import errno
import os
import platform
import struct
import sys

IS_ARM = platform.machine() == "aarch64"
CALLS = {"io_uring_setup": 425, "set_mempolicy": 237 if IS_ARM else 238}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06


def refuse(call: int, number: int) -> None:
    """Installs the filter: load the call's number; if it is this one, fail; else allow."""
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (LOAD_WORD, 0, 0, 0),
            (JUMP_IF_EQUAL, 0, 1, call),
            (RETURN, 0, 0, RET_ERRNO | number),
            (RETURN, 0, 0, RET_ALLOW),
        )
    )
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a count of instructions, and where they are.
    fprog = struct.pack("HxxxxxxP", 4, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(fprog), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            sys.exit(f"cannot set a seccomp filter: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    refuse(CALLS[sys.argv[1]], getattr(errno, sys.argv[2]))
    os.execv(sys.argv[3], sys.argv[3:])
