//! What AgentToServer and its parts look like, and how much of each is taken.
//!
//! The numbers are those of `proto/opamp/v1`; a test compares what is checked by these shapes with what
//! the generated types decode.

use super::{
    MAX_COMPONENTS, MAX_DESCRIPTION, MAX_ENTRIES, MAX_HASH, MAX_HEALTH, MAX_NAME, MAX_STATUS, MAX_TEXT,
};

/// Most fields that a shape has.
pub(super) const MOST_FIELDS: usize = 15;
/// No bound but that of the whole message.
const ANY: usize = usize::MAX;

/// A kind of message: its fields in the order of their numbers, from 1 without a gap.
pub(super) struct Shape(&'static [Field]);

/// A field of a message.
pub(super) struct Field {
    number: u32,
    /// Its name; empty where it adds nothing to the one that it is in.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// How often it may be there; 1 for a field that is not repeated.
    pub(super) most: usize,
    /// Most bytes of its value.
    pub(super) bytes: usize,
}

/// What a field holds.
pub(super) enum Kind {
    /// An integer, flag or enum value.
    Number,
    /// A fixed64 or double.
    Fixed,
    /// UTF-8.
    Text,
    /// Bytes.
    Bytes,
    /// A message.
    Message(&'static Shape),
}

impl Shape {
    /// The field with this number, and what was seen of it.
    pub(super) fn field<'a>(
        &self,
        number: u32,
        seen: &'a mut [(usize, usize); MOST_FIELDS],
    ) -> Option<(&'static Field, (&'a mut usize, &'a mut usize))> {
        let field = self.find(number)?;
        let (count, bytes) = seen.get_mut(at(number))?;
        Some((field, (count, bytes)))
    }

    /// The field with this number.
    pub(super) fn find(&self, number: u32) -> Option<&'static Field> {
        self.0.get(at(number)).filter(|field| field.number == number)
    }
}

/// Where the field with this number stands.
fn at(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX).wrapping_sub(1)
}

const fn number(number: u32, name: &'static str) -> Field {
    Field { number, name, kind: Kind::Number, most: 1, bytes: ANY }
}

const fn fixed(number: u32, name: &'static str) -> Field {
    Field { number, name, kind: Kind::Fixed, most: 1, bytes: ANY }
}

const fn text(number: u32, name: &'static str, bytes: usize) -> Field {
    Field { number, name, kind: Kind::Text, most: 1, bytes }
}

const fn bytes(number: u32, name: &'static str, bytes: usize) -> Field {
    Field { number, name, kind: Kind::Bytes, most: 1, bytes }
}

const fn message(number: u32, name: &'static str, shape: &'static Shape, bytes: usize) -> Field {
    Field { number, name, kind: Kind::Message(shape), most: 1, bytes }
}

/// A repeated message, or a map of which the message is an entry.
const fn many(number: u32, name: &'static str, shape: &'static Shape) -> Field {
    Field { number, name, kind: Kind::Message(shape), most: MAX_ENTRIES, bytes: ANY }
}

/// An entry of a map from names to messages.
macro_rules! entry {
    ($of:expr) => {
        Shape(&[text(1, "key", MAX_NAME), message(2, "", $of, ANY)])
    };
}

pub(super) static AGENT_TO_SERVER: Shape = Shape(&[
    bytes(1, "instance_uid", MAX_HASH),
    number(2, "sequence_num"),
    message(3, "agent_description", &AGENT_DESCRIPTION, MAX_DESCRIPTION),
    number(4, "capabilities"),
    message(5, "health", &COMPONENT_HEALTH, MAX_HEALTH),
    message(6, "effective_config", &EFFECTIVE_CONFIG, ANY),
    message(7, "remote_config_status", &CONFIG_STATUS, MAX_STATUS),
    message(8, "package_statuses", &PACKAGE_STATUSES, MAX_STATUS),
    message(9, "agent_disconnect", &Shape(&[]), ANY),
    number(10, "flags"),
    message(11, "connection_settings_request", &SETTINGS_REQUEST, MAX_STATUS),
    message(12, "custom_capabilities", &CUSTOM_CAPABILITIES, ANY),
    message(13, "custom_message", &CUSTOM_MESSAGE, ANY),
    message(14, "available_components", &AVAILABLE_COMPONENTS, MAX_COMPONENTS),
    message(15, "connection_settings_status", &SETTINGS_STATUS, MAX_STATUS),
]);

static AGENT_DESCRIPTION: Shape = Shape(&[
    many(1, "identifying_attributes", &KEY_VALUE),
    many(2, "non_identifying_attributes", &KEY_VALUE),
]);

static KEY_VALUE: Shape = Shape(&[text(1, "key", MAX_NAME), message(2, "value", &ANY_VALUE, ANY)]);

static ANY_VALUE: Shape = Shape(&[
    text(1, "string_value", MAX_TEXT),
    number(2, "bool_value"),
    number(3, "int_value"),
    fixed(4, "double_value"),
    message(5, "array_value", &ARRAY, ANY),
    message(6, "kvlist_value", &KEY_VALUE_LIST, ANY),
    bytes(7, "bytes_value", MAX_TEXT),
]);

static ARRAY: Shape = Shape(&[many(1, "", &ANY_VALUE)]);

static KEY_VALUE_LIST: Shape = Shape(&[many(1, "", &KEY_VALUE)]);

static COMPONENT_HEALTH: Shape = Shape(&[
    number(1, "healthy"),
    fixed(2, "start_time_unix_nano"),
    text(3, "last_error", MAX_TEXT),
    text(4, "status", MAX_NAME),
    fixed(5, "status_time_unix_nano"),
    many(6, "component_health_map", &HEALTH_ENTRY),
    many(7, "attributes", &KEY_VALUE),
]);

static HEALTH_ENTRY: Shape = entry!(&COMPONENT_HEALTH);

static EFFECTIVE_CONFIG: Shape = Shape(&[message(1, "config_map", &CONFIG_MAP, ANY)]);

static CONFIG_MAP: Shape = Shape(&[many(1, "", &FILE_ENTRY)]);

static FILE_ENTRY: Shape = entry!(&CONFIG_FILE);

static CONFIG_FILE: Shape = Shape(&[bytes(1, "body", ANY), text(2, "content_type", MAX_NAME)]);

static CONFIG_STATUS: Shape = Shape(&[
    bytes(1, "last_remote_config_hash", MAX_HASH),
    number(2, "status"),
    text(3, "error_message", MAX_TEXT),
]);

static SETTINGS_STATUS: Shape = Shape(&[
    bytes(1, "last_connection_settings_hash", MAX_HASH),
    number(2, "status"),
    text(3, "error_message", MAX_TEXT),
]);

static PACKAGE_STATUSES: Shape = Shape(&[
    many(1, "packages", &PACKAGE_ENTRY),
    bytes(2, "server_provided_all_packages_hash", MAX_HASH),
    text(3, "error_message", MAX_TEXT),
]);

static PACKAGE_ENTRY: Shape = entry!(&PACKAGE_STATUS);

static PACKAGE_STATUS: Shape = Shape(&[
    text(1, "name", MAX_NAME),
    text(2, "agent_has_version", MAX_NAME),
    bytes(3, "agent_has_hash", MAX_HASH),
    text(4, "server_offered_version", MAX_NAME),
    bytes(5, "server_offered_hash", MAX_HASH),
    number(6, "status"),
    text(7, "error_message", MAX_TEXT),
    message(8, "download_details", &DOWNLOAD_DETAILS, ANY),
]);

static DOWNLOAD_DETAILS: Shape =
    Shape(&[fixed(1, "download_percent"), fixed(2, "download_bytes_per_second")]);

static SETTINGS_REQUEST: Shape = Shape(&[message(1, "opamp", &OPAMP_SETTINGS_REQUEST, ANY)]);

static OPAMP_SETTINGS_REQUEST: Shape = Shape(&[message(1, "certificate_request", &CERTIFICATE_REQUEST, ANY)]);

static CERTIFICATE_REQUEST: Shape = Shape(&[bytes(1, "csr", MAX_TEXT)]);

static CUSTOM_CAPABILITIES: Shape =
    Shape(&[Field { number: 1, name: "capabilities", kind: Kind::Text, most: MAX_ENTRIES, bytes: MAX_NAME }]);

static CUSTOM_MESSAGE: Shape =
    Shape(&[text(1, "capability", MAX_NAME), text(2, "type", MAX_NAME), bytes(3, "data", ANY)]);

static AVAILABLE_COMPONENTS: Shape =
    Shape(&[many(1, "components", &COMPONENT_ENTRY), bytes(2, "hash", MAX_HASH)]);

static COMPONENT_ENTRY: Shape = entry!(&COMPONENT_DETAILS);

static COMPONENT_DETAILS: Shape =
    Shape(&[many(1, "metadata", &KEY_VALUE), many(2, "sub_component_map", &COMPONENT_ENTRY)]);
