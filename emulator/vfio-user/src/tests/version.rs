//! VERSION.
use nix::errno::Errno;
use svadev_spec::vfio_user::{Version, command};
use zerocopy::IntoBytes;

use super::{QEMU_PROPOSAL, Rig};
use crate::{Limits, ProtocolError, SendError};

fn proposal(major: u16, minor: u16, data: &[u8]) -> Vec<u8> {
    [Version { major, minor }.as_bytes(), data].concat()
}

fn json_of(payload: &[u8]) -> &str {
    let (version, json) = payload.split_at(4);
    assert_eq!(version, Version { major: 0, minor: 0 }.as_bytes());
    std::str::from_utf8(json.strip_suffix(&[0]).expect("ended by NUL")).unwrap()
}

#[test]
fn the_reply_to_qemu_fits_in_the_room_it_has() {
    let mut rig = Rig::unconnected(Limits::default());
    let request = proposal(0, 0, &[QEMU_PROPOSAL.as_bytes(), &[0]].concat());
    let reply = rig.call(command::VERSION, &request).unwrap();
    assert!(reply.len() <= request.len(), "QEMU has no room for more than it sent");
    let json = json_of(&reply);
    assert!(json.len() < 190);
    let expected = r#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096,"write_multiple":true}}"#;
    assert_eq!(json, expected);
}

#[test]
fn capabilities_are_a_subset_of_those_proposed() {
    for (proposed, expected) in [
        (
            r#"{"capabilities":{"max_msg_fds":1,"twin_socket":{"supported":true}}}"#,
            r#"{"capabilities":{"max_msg_fds":16}}"#,
        ),
        (r#"{"capabilities":{"write_multiple":false}}"#, r#"{"capabilities":{}}"#),
        (r#"{"capabilities":{"write_multiple":true} }"#, r#"{"capabilities":{"write_multiple":true}}"#),
        (r#"{"capabilities":{"pgsizes":4096,"max_dma_maps":1}}"#, r#"{"capabilities":{"max_dma_maps":65535}}"#),
    ] {
        let mut rig = Rig::unconnected(Limits::default());
        let reply = rig.call(command::VERSION, &proposal(0, 7, &[proposed.as_bytes(), &[0]].concat())).unwrap();
        assert_eq!(json_of(&reply), expected, "to {proposed}");
    }
}

#[test]
fn version_data_is_optional() {
    let mut rig = Rig::unconnected(Limits::default());
    let reply = rig.call(command::VERSION, &proposal(0, 1, b"")).unwrap();
    let all = r#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096}}"#;
    assert_eq!(json_of(&reply), all, "a client without data may use all of it");
    assert!(rig.call(command::DEVICE_GET_INFO, &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_ok());
    let mut rig = Rig::unconnected(Limits::default());
    assert_eq!(rig.call(command::VERSION, &proposal(0, 1, b"{}\0")).unwrap(), proposal(0, 0, b""), "no room for JSON");
}

#[test]
fn what_is_worse_than_its_default_is_always_said() {
    let limits = Limits { max_data_xfer_size: 4096, ..Limits::default() };
    for proposed in ["{}", r#"{"capabilities":{"max_msg_fds":1}}"#] {
        let mut rig = Rig::unconnected(limits);
        let reply = rig.call(command::VERSION, &proposal(0, 0, &[proposed.as_bytes(), &[0]].concat())).unwrap();
        assert_eq!(json_of(&reply), r#"{"capabilities":{"max_data_xfer_size":4096}}"#, "to {proposed}");
    }
}

#[test]
fn bad_version_data_is_refused_and_may_be_corrected() {
    let mut rig = Rig::unconnected(Limits::default());
    let long = [&[b' '; 5000][..], b"{}\0"].concat();
    let deep = [&[b'['; 4000][..], b"\0"].concat();
    for data in [
        b"{}".as_slice(),
        b"\0",
        b"nonsense\0",
        b"[]\0",
        b"{\"capabilities\":7}\0",
        b"{\"capabilities\":{\"max_msg_fds\":-1}}\0",
        b"{\"capabilities\":{\"max_data_xfer_size\":0}}\0",
        b"\xff\xff\0",
        &long,
        &deep,
    ] {
        assert_eq!(rig.call(command::VERSION, &proposal(0, 0, data)), Err(Errno::EINVAL), "{data:?}");
    }
    assert!(rig.call(command::VERSION, &proposal(0, 0, b"{}\0")).is_ok());
}

#[test]
fn nothing_comes_before_a_version_and_it_comes_once() {
    let mut rig = Rig::unconnected(Limits::default());
    for command in (0..=20).filter(|&c| c != command::VERSION) {
        assert_eq!(rig.call(command, &[0; 64]), Err(Errno::EINVAL));
    }
    assert!(rig.device.calls.is_empty());
    assert_eq!(rig.server.sender().dma_write(0, &[1]), Err(SendError::NotConnected));
    let mut rig = Rig::new();
    assert_eq!(rig.call(command::VERSION, &proposal(0, 0, b"")), Err(Errno::EINVAL));
}

#[test]
fn another_major_version_closes_the_connection() {
    let mut rig = Rig::unconnected(Limits::default());
    rig.client.send(command::VERSION, &proposal(1, 0, b""), Vec::new());
    assert_eq!(rig.client.pump(&mut rig.server, &mut rig.device), Err(ProtocolError::Version(1)));
}

#[test]
fn a_new_connection_negotiates_again() {
    let mut rig = Rig::new();
    rig.disconnect();
    rig.client = crate::client::LoopbackClient::connect(&mut rig.server, 1 << 20);
    assert_eq!(rig.call(command::DEVICE_RESET, &[]), Err(Errno::EINVAL));
    rig.client.negotiate(&mut rig.server, &mut rig.device, QEMU_PROPOSAL).unwrap().result().unwrap();
    assert_eq!(rig.call(command::DEVICE_RESET, &[]), Ok(vec![]));
}
