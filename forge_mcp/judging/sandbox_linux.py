"""The kernel's side of the sandbox on Linux: namespaces, Landlock, seccomp.

Runs in the launcher (sandbox_child.py), which has the standard library alone. Every call that
fails raises OSError, so that a protection is either there or the program does not run. Sources:
namespaces(7), user_namespaces(7), mount_setattr(2), landlock(7), seccomp(2), capabilities(7),
prctl(2), and the kernel's tables of system calls.
"""

# pathlib takes longer to import than all of this to run.
# ruff: noqa: PTH102, PTH103, PTH110, PTH112, PTH114, PTH115, PTH120, PTH123, PTH208, PTH211

from __future__ import annotations

import ctypes
import errno
import os
import struct

TYPE_CHECKING = False  # the module typing takes longer to import, too
if TYPE_CHECKING:
    from collections.abc import Sequence

LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET, CLONE_THREAD = 0x20000000, 0x40000000, 0x00010000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 1, 4, 8
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
CAP_DAC_READ_SEARCH = 2
SIGKILL = 9

# The same on every architecture.
MOUNT_SETATTR, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 442, 444, 445, 446
# The newest system call that this table was written with; later ones do not exist for a program.
NEWEST = 469

# What the loader, the standard library and small tools read. Nothing else of the machine is there.
SYSTEM_PATHS = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
    "/etc/localtime",
)
SCRATCH = "/forge-scratch"
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

# System calls that the seccomp filters know: (x86_64, aarch64), None where there is none.
Numbers = tuple[int | None, int | None]
# Forbidden at every level.
FORBIDDEN: dict[str, Numbers] = {
    # memory that neither RLIMIT_AS nor a process' resident set counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    # the user's keys, and large parts of the kernel that no program here needs
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "open_by_handle_at": (304, 265),
}
# Forbidden without namespaces: what would reach other processes, the network, or files' metadata.
FORBIDDEN_OUTSIDE: dict[str, Numbers] = {
    # other programs and processes (clone and clone3: see `seccomp_program`)
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # the network, and whoever listens on this machine
    "socket": (41, 198),
    # what Landlock does not see of files: their owner, mode, times and attributes
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}
CLONE: Numbers = (56, 220)
CLONE3: Numbers = (435, 435)
# Allowed on the process itself, by its id as the first argument.
OWN_PROCESS: dict[str, Numbers] = {"kill": (62, 129), "tgkill": (234, 131)}
PRLIMIT: Numbers = (302, 261)
# Forbidden with these values of an argument: (numbers, index of the argument, values). F_SETOWN,
# F_SETOWN_EX, F_SETSIG, FIOSETOWN and SIOCSPGRP would have the kernel send signals to others.
FORBIDDEN_VALUES: dict[str, tuple[Numbers, int, tuple[int, ...]]] = {
    "fcntl": ((72, 25), 1, (8, 15, 10)),
    "ioctl": ((16, 29), 1, (0x8901, 0x8902)),
    "prctl": ((157, 167), 0, (PR_SET_PDEATHSIG,)),
}
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_…


def checked(what: str, result: int) -> int:
    """The result of a system call.

    Raises:
        OSError: it is -1; the message names `what`.
    """
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def architecture(machine: str) -> tuple[int, int]:
    """The column in the tables, and the kernel's number, of an architecture.

    Raises:
        OSError: it is none of `ARCHITECTURES`.
    """
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    return ARCHITECTURES[machine]


def die_with_parent() -> None:
    """SIGKILL for this process when the one that forked it is gone."""
    checked("prctl(PDEATHSIG)", LIBC.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))


def first_to_be_killed() -> None:
    """Where the machine runs out of memory in spite of the limits, the program goes first."""
    try:
        _write("/proc/self/oom_score_adj", "1000")
    except OSError:  # /proc may be hidden; the limits hold without
        return


def leave_keyring() -> None:
    """Another session keyring: the user's keys are no longer at hand."""
    column, _ = architecture(os.uname().machine)
    join_session_keyring = 1
    # A kernel or container that knows no keyrings has no keys to hide: not checked.
    LIBC.syscall(FORBIDDEN["keyctl"][column], join_session_keyring, None)


def own_namespaces(user: bool) -> None:
    """Namespaces of its own for this process (mounts, network, IPC) and its children (processes).

    user: through a user namespace, in which this user may make the others.
    """
    flags = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    uid, gid = os.getuid(), os.getgid()
    checked("unshare", LIBC.unshare(flags | (CLONE_NEWUSER if user else 0)))
    if user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            _write(f"/proc/self/{name}", text)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def new_root(root: str, readable: Sequence[str], uid: int, gid: int, file_bytes: int) -> None:
    """Make a file system of nothing but `readable`, read-only, and an empty folder, which is also
    /tmp; change into that.

    Args:
        root: an empty folder to build it on; outside it stays empty.
        readable: files and folders of this machine that are there under their own paths.
        uid, gid: who owns the empty folder.
        file_bytes: what fits into it; it is memory.

    chroot suffices: who has no CAP_SYS_CHROOT cannot leave it, and the kernel lets nobody who
    stands in a chroot make the user namespace that would give it.
    """
    os.umask(0o022)
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=1000,mode=0755")
    for path in readable:
        if os.path.exists(path):
            _mirror(root, path)
    for device in DEVICES:
        _mount(device, _place(root, device), None, MS_BIND)
    scratch = root + SCRATCH
    os.mkdir(scratch)
    usual = root + "/tmp"  # noqa: S108
    if not os.path.exists(usual):  # the interpreter may lie in there
        os.symlink(SCRATCH, usual)
    options = f"size={file_bytes},nr_inodes=1000,mode=0700,uid={uid},gid={gid}"
    _mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, options)
    _restrict_mount(root, recursive=False)
    os.chroot(root)
    os.chdir(SCRATCH)


def _mirror(root: str, path: str) -> None:
    """One path of this machine, with all that is mounted below it, read-only under `root`."""
    if os.path.islink(path) and os.path.dirname(path) == "/":  # /bin -> usr/bin
        os.symlink(os.readlink(path), root + path)
        return
    place = _place(root, path)
    _mount(path, place, None, MS_BIND | MS_REC)
    _restrict_mount(place, recursive=True)


def _place(root: str, path: str) -> str:
    """Where a path is to be mounted: an empty folder or file."""
    place = root + path
    if os.path.isdir(path):
        os.makedirs(place, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_CREAT, 0o644))
    return place


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    checked(f"mount {target}", LIBC.mount(*encoded, ctypes.c_ulong(flags), options.encode()))


def _restrict_mount(path: str, recursive: bool) -> None:
    """Read-only, no set-user-id programs, no devices."""
    read_only, no_suid, no_devices = 1, 2, 4
    attributes = struct.pack("=QQQQ", read_only | no_suid | no_devices, 0, 0, 0)
    at_cwd, at_recursive = -100, 0x8000
    flags = at_recursive if recursive else 0
    checked(
        f"mount_setattr {path}",
        LIBC.syscall(MOUNT_SETATTR, at_cwd, path.encode(), flags, attributes, ctypes.c_size_t(32)),
    )


def become(uid: int, gid: int) -> None:
    """Another user for good; must be root. What root may is no longer in effect, but can be kept
    until `give_up_privileges`."""
    checked("prctl(KEEPCAPS)", LIBC.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def give_up_privileges(keep: int = 0) -> None:
    """No capability is left but those of the bits `keep`, and no program that is started brings
    one back."""
    checked("prctl(NO_NEW_PRIVS)", LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    version_3 = 0x20080522
    header = struct.pack("=Ii", version_3, 0)
    what = "capset to read a library that other users may not" if keep else "capset"
    checked(what, LIBC.capset(header, struct.pack("=IIIIII", keep, keep, 0, 0, 0, 0)))


def reading_rights() -> int:
    """The capability that the interpreter needs to read its own library: none, or, where that
    lies in a folder which this user may not enter, to read whatever Landlock lets it."""
    try:
        os.listdir(os.path.dirname(os.__file__))
    except PermissionError:
        return 1 << CAP_DAC_READ_SEARCH
    return 0


def refuse_debuggers() -> None:
    """No process of the same user may look into this one."""
    checked("prctl(DUMPABLE)", LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))


def landlock(readable: Sequence[str]) -> None:
    """From now on this process reads only `readable`, writes only to /dev/null, makes, removes and
    starts nothing. Needs no_new_privs.

    Raises:
        OSError: the kernel has no Landlock of version 3 (Linux 6.2), the first that guards
            truncation.
    """
    version = LIBC.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 3:
        raise OSError(errno.ENOSYS, "the kernel has no Landlock of version 3 (Linux 6.2)")
    write_file, read_file, read_folder = 1 << 1, 1 << 2, 1 << 3
    everything = (1 << (16 if version >= 5 else 15)) - 1
    ruleset = checked(
        "landlock_create_ruleset",
        LIBC.syscall(LANDLOCK_CREATE, struct.pack("=Q", everything), ctypes.c_size_t(8), 0),
    )
    try:
        for path in (*readable, *DEVICES):
            if not os.path.exists(path):
                continue
            rights = read_file | (read_folder if os.path.isdir(path) else 0)
            if path == "/dev/null":
                rights |= write_file
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = struct.pack("=Qi", rights, beneath)
                checked(
                    f"landlock_add_rule {path}", LIBC.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0)
                )
            finally:
                os.close(beneath)
        checked("landlock_restrict_self", LIBC.syscall(LANDLOCK_RESTRICT, ruleset, 0))
    finally:
        os.close(ruleset)


def seccomp(machine: str, alone: int | None = None) -> None:
    """From now on this process makes none of the forbidden system calls; see `seccomp_program`.

    Raises:
        OSError: the kernel has no seccomp, or the architecture is none of `ARCHITECTURES`.
    """
    program = seccomp_program(machine, alone)
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    mode_filter = 2
    checked("seccomp", LIBC.prctl(PR_SET_SECCOMP, mode_filter, fprog, 0, 0))


def seccomp_program(machine: str, alone: int | None = None) -> bytes:
    """The filter in BPF, 8 bytes an instruction, for an architecture.

    alone: the id of a process that shall start no other, open no socket and reach no other
    process; None where namespaces see to that.

    It answers EPERM to what is forbidden and ENOSYS to what a program has another way for
    (clone3) or to calls newer than the table; all others pass. A process of another architecture's
    calls is killed.

    Raises:
        OSError: the architecture is none of `ARCHITECTURES`.
    """
    column, audit = architecture(machine)
    load, equal, greater, any_bit, answer = 0x20, 0x15, 0x25, 0x45, 0x06
    allow, kill, error = 0x7FFF0000, 0x80000000, 0x00050000
    instructions: list[tuple[int, int, int, int]] = []

    def emit(code: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        instructions.append((code, if_true, if_false, value))

    def for_call(number: int | None, body: list[tuple[int, int, int, int]]) -> None:
        """`body` for the call of that number, which ends in an answer."""
        if number is not None:
            emit(equal, number, 0, len(body))
            instructions.extend(body)

    def argument(index: int) -> tuple[int, int, int, int]:
        return (load, 0, 0, 16 + 8 * index)  # its low 32 bits: struct seccomp_data, little-endian

    no, yes = (answer, 0, 0, error | errno.EPERM), (answer, 0, 0, allow)
    emit(load, 4)
    emit(equal, audit, 1, 0)
    emit(answer, kill)
    emit(load, 0)
    emit(greater, NEWEST, 0, 1)
    emit(answer, error | errno.ENOSYS)
    for numbers in FORBIDDEN.values():
        for_call(numbers[column], [no])
    if alone is not None:
        for numbers in FORBIDDEN_OUTSIDE.values():
            for_call(numbers[column], [no])
        for_call(CLONE3[column], [(answer, 0, 0, error | errno.ENOSYS)])
        for_call(CLONE[column], [argument(0), (any_bit, 0, 1, CLONE_THREAD), yes, no])
        for numbers in OWN_PROCESS.values():
            for_call(numbers[column], [argument(0), (equal, 0, 1, alone), yes, no])
        own = [argument(0), (equal, 1, 0, alone), (equal, 0, 1, 0), yes, no]
        for_call(PRLIMIT[column], own)
        for numbers, index, values in FORBIDDEN_VALUES.values():
            tests = [
                (equal, len(values) - 1 - at, int(at == len(values) - 1), value)
                for at, value in enumerate(values)
            ]
            for_call(numbers[column], [argument(index), *tests, no, yes])
    instructions.append(yes)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
