//! Starts a program that may not make a system call, as under a container runtime's seccomp profile.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// A system call that fails.
#[derive(Clone, Copy)]
pub(crate) struct Denied {
    pub(crate) number: i64,
    /// Only with this first argument.
    pub(crate) first: Option<u32>,
    pub(crate) errno: i32,
}

/// Makes the system call fail in the program that `command` starts.
#[expect(
    unsafe_code,
    reason = "seccomp has no safe interface, and the filter must be set in the child"
)]
pub(crate) fn deny(command: &mut Command, denied: Denied) {
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const FIRST_ARGUMENT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };
    // Without a first argument it is compared with the number, once more.
    let (place, value) =
        denied.first.map_or((0, denied.number as u32), |first| (FIRST_ARGUMENT, first));
    let filter = [
        // the number of the system call
        op(LOAD, 0, 0, 0),
        op(EQUAL, 0, 3, denied.number as u32),
        op(LOAD, 0, 0, place),
        op(EQUAL, 0, 1, value),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | denied.errno as u32),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe; the filter is
    // owned by the closure, and the kernel copies it.
    unsafe {
        command.pre_exec(move || {
            let program =
                libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
            let refused = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
                    != 0;
            if refused {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

const fn op(code: u32, jump_true: u8, jump_false: u8, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: jump_true, jf: jump_false, k: value }
}
