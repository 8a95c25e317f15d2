//! Starts a program that may not use io_uring, as a container runtime's seccomp profile would.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the system call `number` fail with `errno` in the program that `command` starts.
#[expect(
    unsafe_code,
    reason = "seccomp has no safe interface, and the filter must be set in the child"
)]
pub(crate) fn deny(command: &mut Command, number: i64, errno: i32) {
    let filter = [
        // the number of the system call
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number as u32),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
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

fn op(code: u32, jump_true: u8, jump_false: u8, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: jump_true, jf: jump_false, k: value }
}
