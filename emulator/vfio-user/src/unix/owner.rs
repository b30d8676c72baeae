//! The process that a machine's sockets belong to: two VMMs never share a machine.
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// Which process has the sockets of one machine. All of its sockets share it.
#[derive(Clone, Debug, Default)]
pub struct Owner(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    process: i32,
    connections: u32,
}

/// Whether a process may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The connection is its own, until [`Owner::give_back`].
    Yes,
    /// This process has the machine.
    ByAnother(i32),
    /// A process has the machine that has ended: its sockets will be free soon.
    ByTheDead,
}

impl Owner {
    /// Takes a connection for a process.
    pub(super) fn take(&self, process: i32) -> Taken {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.connections > 0 && held.process != process {
            return if lives(held.process) { Taken::ByAnother(held.process) } else { Taken::ByTheDead };
        }
        held.process = process;
        held.connections += 1;
        Taken::Yes
    }

    /// Gives a connection back that was taken.
    pub(super) fn give_back(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).connections -= 1;
    }

    /// The process that took a connection last.
    pub(super) fn process(&self) -> i32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).process
    }
}

/// The process at the other end. 0 for one that this process cannot see, such as one of another PID namespace: all of
/// those count as one.
pub(super) fn peer(stream: &UnixStream) -> i32 {
    getsockopt(stream, PeerCredentials).map_or(0, |credentials| credentials.pid())
}

/// Whether a process has not ended (proc_pid_stat(5), field 3). One that cannot be seen is alive.
fn lives(process: i32) -> bool {
    if process == 0 {
        return true;
    }
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
    // The name, in parentheses, may hold anything.
    !stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_of_a_machine_belong_to_one_process_at_a_time() {
        let owner = Owner::default();
        let me = i32::try_from(std::process::id()).unwrap();
        // Process 1 lives as long as the machine.
        assert_eq!((owner.take(1), owner.take(1), owner.take(me)), (Taken::Yes, Taken::Yes, Taken::ByAnother(1)));
        owner.give_back();
        assert_eq!(owner.take(me), Taken::ByAnother(1), "it has another socket");
        owner.give_back();
        assert_eq!(owner.take(me), Taken::Yes);
        owner.give_back();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        let process = i32::try_from(dead.id()).unwrap();
        assert_eq!(owner.take(process), Taken::Yes);
        while lives(process) {
            std::thread::yield_now();
        }
        assert_eq!(owner.take(me), Taken::ByTheDead, "ended, and not waited for");
        dead.wait().unwrap();
        assert_eq!(owner.take(me), Taken::ByTheDead);
    }
}
