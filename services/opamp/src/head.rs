//! The outermost fields of an AgentToServer, read without decoding what is inside them: most
//! messages are heartbeats, and of a report the gateway needs only to know what is in it.

use std::hash::{DefaultHasher, Hasher};

use bytes::{Buf, Bytes};
use muster_domain::capabilities::AgentCapabilities;
use muster_domain::ids::InstanceUid;
use muster_domain::sequence::Numbered;
use muster_proto::Message as _;
use muster_proto::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use muster_proto::opamp::{AgentToServer, AgentToServerFlags};

use crate::bounds;

/// Field numbers of AgentToServer.
mod field {
    pub(super) const INSTANCE_UID: u32 = 1;
    pub(super) const SEQUENCE_NUM: u32 = 2;
    pub(super) const AGENT_DESCRIPTION: u32 = 3;
    pub(super) const CAPABILITIES: u32 = 4;
    pub(super) const HEALTH: u32 = 5;
    pub(super) const EFFECTIVE_CONFIG: u32 = 6;
    pub(super) const REMOTE_CONFIG_STATUS: u32 = 7;
    pub(super) const AGENT_DISCONNECT: u32 = 9;
    pub(super) const FLAGS: u32 = 10;
    pub(super) const CUSTOM_CAPABILITIES: u32 = 12;
}

/// Custom capabilities of an agent that are answered, and the length of each name in bytes.
const MAX_CUSTOM: (usize, usize) = (64, 256);

/// A message that is refused: the reason is for the agent's operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadMessage {
    /// The agent, as far as it is known.
    pub uid: Option<InstanceUid>,
    /// What is wrong: the field, and the limit where there is one.
    pub reason: String,
}

impl From<String> for BadMessage {
    fn from(reason: String) -> Self {
        Self { uid: None, reason }
    }
}

/// What the outermost fields of an AgentToServer say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// instance_uid.
    pub uid: InstanceUid,
    /// sequence_num.
    pub sequence_num: u64,
    /// capabilities; zero means unchanged.
    pub capabilities: AgentCapabilities,
    /// Whether the agent asks for another uid (AgentToServerFlags.RequestInstanceUid): the one in the
    /// message is for the time being.
    pub requests_uid: bool,
    /// Bit set of the fields that are present, by field number; fields from 63 on are bit 63.
    pub kinds: u64,
    /// A digest of the whole message.
    pub digest: u64,
    /// Whether a text in the message holds NUL, which not every store can hold.
    pub has_nul: bool,
}

impl Head {
    /// Reads the head and checks that the whole message can be decoded and is within the
    /// [bounds](crate::bounds).
    ///
    /// # Errors
    /// With a text for people, if the message is not an AgentToServer of a 16-byte instance_uid, or a part
    /// of it is larger than what is taken.
    pub fn read(message: &Bytes) -> Result<Self, BadMessage> {
        let mut head = Self::scan(message)?;
        if !head.is_plain() {
            head.has_nul = bounds::check(message)
                .map_err(|error| BadMessage { uid: Some(head.uid), reason: error.to_string() })?;
        }
        Ok(head)
    }

    /// The message whose head this is as it is to be published: without NUL in texts, else as the agent
    /// sent it.
    pub fn publishable(&self, message: Bytes) -> Bytes {
        if self.has_nul { bounds::clean(&message) } else { message }
    }

    fn scan(message: &Bytes) -> Result<Self, BadMessage> {
        let malformed = |error| BadMessage::from(format!("the message is not an AgentToServer: {error}"));
        let mut rest = message.clone();
        let mut uid = Bytes::new();
        let (mut sequence_num, mut capabilities, mut flags, mut kinds) = (0, 0, 0, 0_u64);
        while rest.has_remaining() {
            let (number, wire_type) = decode_key(&mut rest).map_err(malformed)?;
            kinds |= 1 << number.min(63);
            match (number, wire_type) {
                (field::INSTANCE_UID, WireType::LengthDelimited) => {
                    let length = decode_varint(&mut rest).map_err(malformed)?;
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    if length > rest.remaining() {
                        return Err(BadMessage::from("the message ends inside instance_uid".to_owned()));
                    }
                    uid = rest.split_to(length);
                }
                (field::SEQUENCE_NUM, WireType::Varint) => {
                    sequence_num = decode_varint(&mut rest).map_err(malformed)?;
                }
                (field::CAPABILITIES, WireType::Varint) => {
                    capabilities = decode_varint(&mut rest).map_err(malformed)?;
                }
                (field::FLAGS, WireType::Varint) => flags = decode_varint(&mut rest).map_err(malformed)?,
                (field::INSTANCE_UID | field::SEQUENCE_NUM | field::CAPABILITIES | field::FLAGS, _) => {
                    return Err(format!("field {number} of the message has the wrong wire type").into());
                }
                (number, wire_type) => {
                    skip_field(wire_type, number, &mut rest, DecodeContext::default()).map_err(malformed)?;
                }
            }
        }
        let uid = InstanceUid::try_from(uid.as_ref()).map_err(|error| error.to_string())?;
        let mut digest = DefaultHasher::new();
        digest.write(message);
        Ok(Self {
            uid,
            sequence_num,
            capabilities: AgentCapabilities(capabilities),
            requests_uid: flags & AgentToServerFlags::RequestInstanceUid as u64 != 0,
            kinds,
            digest: digest.finish(),
            has_nul: false,
        })
    }

    const fn plain() -> u64 {
        1 << field::INSTANCE_UID | 1 << field::SEQUENCE_NUM | 1 << field::CAPABILITIES
    }

    /// Whether the message holds nothing but uid, sequence number and capabilities.
    pub fn is_plain(&self) -> bool {
        self.kinds & !Self::plain() == 0
    }

    /// Whether the message holds only a uid: a heartbeat that takes no part in the numbering.
    pub fn is_unnumbered(&self) -> bool {
        self.kinds == 1 << field::INSTANCE_UID
    }

    /// Whether agent_description is present: the mark of a full report.
    pub fn has_description(&self) -> bool {
        self.kinds & 1 << field::AGENT_DESCRIPTION != 0
    }

    /// Whether remote_config_status is present.
    pub fn has_config_status(&self) -> bool {
        self.kinds & 1 << field::REMOTE_CONFIG_STATUS != 0
    }

    /// Whether health and effective config are present as far as the message's capabilities promise them. A
    /// config status is not asked for: clients leave it out while they have none.
    fn is_full(&self) -> bool {
        let health = (AgentCapabilities::REPORTS_HEALTH, field::HEALTH);
        let effective = (AgentCapabilities::REPORTS_EFFECTIVE_CONFIG, field::EFFECTIVE_CONFIG);
        let holds = |number: u32| self.kinds & 1 << number != 0;
        [health, effective].into_iter().all(|(promise, part)| !self.capabilities.has(promise) || holds(part))
    }

    /// Whether the agent says goodbye.
    pub fn is_disconnect(&self) -> bool {
        self.kinds & 1 << field::AGENT_DISCONNECT != 0
    }

    /// What the server answers to an agent that names its custom capabilities: the same ones, as it passes
    /// the messages of every capability on (specification, "CustomCapabilities"). `message` is the one that
    /// this is the head of.
    pub fn custom_capabilities(&self, message: &Bytes) -> Option<Vec<String>> {
        if self.kinds & 1 << field::CUSTOM_CAPABILITIES == 0 {
            return None;
        }
        let mut names = AgentToServer::decode(message.clone()).ok()?.custom_capabilities?.capabilities;
        names.retain(|name| name.len() <= MAX_CUSTOM.1);
        names.truncate(MAX_CUSTOM.0);
        Some(names)
    }

    /// The message for sequence tracking.
    pub fn numbered(&self) -> Numbered {
        Numbered {
            sequence_num: self.sequence_num,
            digest: self.digest,
            has_description: self.has_description(),
            is_full: self.is_full(),
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::Message;
    use muster_proto::opamp::{AgentDescription, AgentDisconnect, AgentToServer};
    use proptest::prelude::*;

    use super::*;

    fn read(message: &AgentToServer) -> Result<Head, BadMessage> {
        Head::read(&message.encode_to_vec().into())
    }

    fn message() -> AgentToServer {
        AgentToServer {
            instance_uid: vec![7; 16],
            sequence_num: 3,
            capabilities: 5,
            ..AgentToServer::default()
        }
    }

    #[test]
    fn a_head_tells_what_is_present() {
        let head = read(&message()).unwrap();
        assert_eq!((head.sequence_num, head.capabilities.0, head.is_plain()), (3, 5, true));
        let head = read(&AgentToServer {
            agent_description: Some(AgentDescription::default()),
            agent_disconnect: Some(AgentDisconnect::default()),
            ..message()
        })
        .unwrap();
        assert_eq!((head.is_plain(), head.has_description(), head.is_disconnect()), (false, true, true));
        let head = read(&AgentToServer { instance_uid: vec![7; 16], ..AgentToServer::default() }).unwrap();
        assert!(head.is_unnumbered());
        assert!(!head.requests_uid);
        for (flags, requests_uid) in [(1, true), (2, false), (3, true)] {
            let head = read(&AgentToServer { flags, ..message() }).unwrap();
            assert_eq!((head.requests_uid, head.is_plain()), (requests_uid, false));
        }
    }

    #[test]
    fn unknown_fields_make_a_report() {
        let mut bytes = message().encode_to_vec();
        bytes.extend([0xfa, 0x3e, 0x01, b'x']); // field 1007
        let head = Head::read(&bytes.into()).unwrap();
        assert!(!head.is_plain());
    }

    #[test]
    fn bad_messages_are_told_why() {
        let error = |bytes: Vec<u8>| Head::read(&bytes.into()).unwrap_err().to_string();
        assert_eq!(error(Vec::new()), "instance_uid must be 16 bytes, this one has 0");
        let text_uid = AgentToServer { instance_uid: vec![b'a'; 26], ..AgentToServer::default() };
        assert_eq!(error(text_uid.encode_to_vec()), "instance_uid must be 16 bytes, this one has 26");
        assert_eq!(error(vec![0x0a, 0x20, 1]), "the message ends inside instance_uid");
        assert_eq!(error(vec![0x08, 1]), "field 1 of the message has the wrong wire type");
        let mut broken_inside = message().encode_to_vec();
        broken_inside.extend([0x1a, 2, 0x0a, 0x7f]);
        assert!(error(broken_inside).starts_with("the message is not an AgentToServer: "));
    }

    proptest! {
        #[test]
        fn the_head_agrees_with_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let bytes = Bytes::from(bytes);
            let decoded = AgentToServer::decode(bytes.clone());
            if let Ok(head) = Head::read(&bytes) {
                let decoded = decoded.unwrap();
                prop_assert_eq!(head.uid.as_bytes().as_slice(), decoded.instance_uid.as_slice());
                prop_assert_eq!(head.sequence_num, decoded.sequence_num);
                prop_assert_eq!(head.capabilities.0, decoded.capabilities);
                prop_assert_eq!(head.has_description(), decoded.agent_description.is_some());
                prop_assert_eq!(head.requests_uid, decoded.flags & 1 != 0);
            }
        }
    }
}
