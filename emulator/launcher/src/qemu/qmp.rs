//! The part of QEMU's monitor protocol that is needed: greet, and hear why the machine stopped
//! (QEMU, `docs/interop/qmp-spec.rst`).
use serde::Deserialize;

/// What follows the greeting: ends negotiation.
pub const CAPABILITIES: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n";

/// Asks whether the machine runs: one that was started with `-S` never said that it stopped.
pub const QUERY_STATUS: &[u8] = b"{\"execute\":\"query-status\"}\n";

/// What QEMU says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// It is there.
    Greeting,
    /// The machine stops, for the reason that QEMU gives (`ShutdownCause`).
    Shutdown {
        /// `guest-shutdown`, `guest-reset`, `guest-panic`, `host-qmp-quit`, …
        reason: String,
    },
    /// The machine was stopped, and goes on later.
    Stopped,
    /// The machine goes on.
    Resumed,
    /// A command failed.
    Error(String),
    /// Anything else.
    Other,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "QMP")]
    greeting: Option<serde_json::Value>,
    event: Option<String>,
    data: Option<Data>,
    error: Option<ErrorBody>,
    #[serde(rename = "return")]
    answer: Option<Answer>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Status { running: bool },
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Data {
    reason: Option<String>,
}

#[derive(Deserialize)]
struct ErrorBody {
    desc: String,
}

impl Message {
    /// From a line; `None` if it is no JSON object.
    pub fn parse(line: &str) -> Option<Self> {
        let raw: Raw = serde_json::from_str(line).ok()?;
        Some(match raw {
            Raw { greeting: Some(_), .. } => Self::Greeting,
            Raw { event: Some(event), data, .. } if event == "SHUTDOWN" => {
                Self::Shutdown { reason: data.and_then(|data| data.reason).unwrap_or_default() }
            }
            Raw { event: Some(event), .. } if event == "STOP" => Self::Stopped,
            Raw { event: Some(event), .. } if event == "RESUME" => Self::Resumed,
            Raw { answer: Some(Answer::Status { running: false }), .. } => Self::Stopped,
            Raw { error: Some(error), .. } => Self::Error(error.desc),
            _ => Self::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(Message::parse(r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#), Some(Message::Greeting));
        let shutdown = r#"{"timestamp": {}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;
        assert_eq!(Message::parse(shutdown), Some(Message::Shutdown { reason: "guest-reset".into() }));
        assert_eq!(Message::parse(r#"{"return": {}}"#), Some(Message::Other));
        assert_eq!(Message::parse(r#"{"timestamp": {}, "event": "STOP"}"#), Some(Message::Stopped));
        assert_eq!(Message::parse(r#"{"timestamp": {}, "event": "RESUME"}"#), Some(Message::Resumed));
        let status = r#"{"return": {"running": false, "status": "prelaunch"}}"#;
        assert_eq!(Message::parse(status), Some(Message::Stopped), "as with -S");
        let status = r#"{"return": {"running": true, "status": "running"}}"#;
        assert_eq!(Message::parse(status), Some(Message::Other));
        let error = r#"{"error": {"class": "GenericError", "desc": "no"}}"#;
        assert_eq!(Message::parse(error), Some(Message::Error("no".into())));
        assert_eq!(Message::parse("QEMU"), None);
    }
}
