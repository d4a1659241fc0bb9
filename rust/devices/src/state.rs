//! The versioned state record of a device. Snapshots, forks and state hashes are made of these.
//! The payload is CBOR with named fields: a later version can read an older record by giving new fields a default, other
//! tools can print a record without knowing the chip, and equal states give equal bytes.
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One device's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
pub struct State {
    /// Which chip made it: [`crate::Device::name`].
    pub kind: String,
    /// The layout of the payload, counted per chip.
    pub version: u16,
    /// The chip's registers, in CBOR.
    pub payload: Vec<u8>,
}

/// Why a record could not be restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The record belongs to another chip.
    #[error("this is the state of a {found}, not of a {expected}")]
    Kind { expected: &'static str, found: String },
    /// The record was made by a newer program.
    #[error("{kind}: state version {found} is newer than this program's {known}")]
    Version { kind: &'static str, known: u16, found: u16 },
    /// The payload is truncated, or not what the version says.
    #[error("{kind}: damaged state record: {reason}")]
    Payload { kind: &'static str, reason: String },
}

impl State {
    /// Makes a record of `registers`.
    pub fn encode<T: Serialize>(kind: &'static str, version: u16, registers: &T) -> State {
        let mut payload = Vec::new();
        // Writing to a Vec cannot fail, and register structs have no keys or values that CBOR cannot express.
        let written = ciborium::into_writer(registers, &mut payload);
        debug_assert!(written.is_ok(), "{kind}: {written:?}");
        State { kind: kind.to_owned(), version, payload }
    }

    /// Takes the registers out of a record of the given kind, of any version up to `version`.
    pub fn decode<T: DeserializeOwned>(&self, kind: &'static str, version: u16) -> Result<T, StateError> {
        if self.kind != kind {
            return Err(StateError::Kind { expected: kind, found: self.kind.clone() });
        }
        if self.version > version {
            return Err(StateError::Version { kind, known: version, found: self.version });
        }
        ciborium::from_reader(self.payload.as_slice())
            .map_err(|error| StateError::Payload { kind, reason: error.to_string() })
    }
}

/// A value that only a damaged record can hold.
pub(crate) fn damaged(kind: &'static str, reason: impl Into<String>) -> StateError {
    StateError::Payload { kind, reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Old {
        a: u8,
    }

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct New {
        a: u8,
        #[serde(default)]
        b: u64,
    }

    #[test]
    fn an_older_record_is_read_with_defaults() {
        let state = State::encode("chip", 1, &Old { a: 7 });
        assert_eq!(state.decode::<New>("chip", 2), Ok(New { a: 7, b: 0 }));
    }

    #[test]
    fn wrong_kind_newer_version_and_damage_are_told_apart() {
        let state = State::encode("chip", 2, &New { a: 1, b: 2 });
        assert!(matches!(state.decode::<New>("other", 2), Err(StateError::Kind { .. })));
        assert!(matches!(state.decode::<New>("chip", 1), Err(StateError::Version { found: 2, .. })));
        for cut in 0..state.payload.len() {
            let short = State { payload: state.payload[..cut].to_vec(), ..state.clone() };
            assert!(matches!(short.decode::<New>("chip", 2), Err(StateError::Payload { .. })));
        }
    }
}
