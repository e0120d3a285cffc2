//! Lives of the log in a bucket: control raises them there, gateways learn from them.
//!
//! Every partition of the log counts its epochs; the store has them. When one opens, what gateways had
//! acknowledged may be lost: a gateway that sees the epoch rise asks the agents of the partition for full
//! state. All of a cell are one value, so that looking at them is one read; each only rises.

use bytes::Bytes;
use muster_domain::ids::{Cell, PARTITIONS, Partition};

use crate::EngineError;
use crate::kv::{KeyValue, Precondition, PutError, Versioned};

/// Attempts at the value while others write it.
const ATTEMPTS: usize = 32;
const ENGINE: &str = "epochs";

/// The epoch of each partition; zero where none is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epochs([u64; PARTITIONS as usize]);

impl Default for Epochs {
    fn default() -> Self {
        Self([0; PARTITIONS as usize])
    }
}

impl Epochs {
    /// The epoch of a partition; zero if it is not known.
    pub fn of(&self, partition: Partition) -> u64 {
        self.0[usize::from(partition.number())]
    }

    /// Raises a partition's epoch to this if it is lower. Returns whether it was.
    pub fn raise(&mut self, partition: Partition, epoch: u64) -> bool {
        let known = &mut self.0[usize::from(partition.number())];
        let is_higher = epoch > *known;
        *known = epoch.max(*known);
        is_higher
    }
}

fn key(cell: &Cell) -> String {
    format!("epochs/{cell}")
}

/// The epochs in the bucket; of a bucket that was lost, or never filled, none is known.
///
/// # Errors
/// If the engine does not say, or holds something else.
pub async fn load(bucket: &dyn KeyValue, cell: &Cell) -> Result<Epochs, EngineError> {
    let key = key(cell);
    bucket.get(&key).await?.map_or_else(|| Ok(Epochs::default()), |found| read(&key, &found))
}

/// Raises a partition's epoch in the bucket to this if it is lower. Returns whether it was. Any number of
/// callers may do this at once.
///
/// # Errors
/// If the engine did not do it, or holds something else.
pub async fn raise(
    bucket: &dyn KeyValue,
    cell: &Cell,
    partition: Partition,
    epoch: u64,
) -> Result<bool, EngineError> {
    let key = key(cell);
    for _ in 0..ATTEMPTS {
        let found = bucket.get(&key).await?;
        let mut epochs = found.as_ref().map_or_else(|| Ok(Epochs::default()), |found| read(&key, found))?;
        if !epochs.raise(partition, epoch) {
            return Ok(false);
        }
        let precondition = found.map_or(Precondition::Absent, |found| Precondition::Version(found.version));
        match bucket.put(&key, write(&epochs), precondition).await {
            Ok(_) => return Ok(true),
            Err(PutError::Conflict) => {}
            Err(PutError::Engine(error)) => return Err(error),
        }
    }
    let reason = format!("{key} was changed by others {ATTEMPTS} times in a row");
    Err(EngineError::Unavailable { engine: ENGINE, reason })
}

/// As text: the epochs in order of the partitions, each after a space but the first.
fn write(epochs: &Epochs) -> Bytes {
    epochs.0.map(|epoch| epoch.to_string()).join(" ").into()
}

fn read(key: &str, value: &Versioned) -> Result<Epochs, EngineError> {
    let text = std::str::from_utf8(&value.value).ok();
    let numbers = text.map(|text| text.split(' ').map(str::parse::<u64>).collect::<Result<Vec<_>, _>>());
    let epochs = numbers.and_then(Result::ok).and_then(|numbers| numbers.try_into().ok());
    epochs.map(Epochs).ok_or_else(|| EngineError::Corrupt {
        engine: ENGINE,
        place: key.to_owned(),
        reason: format!("the value is not {PARTITIONS} numbers"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_read_as_it_was_written_and_nothing_else_is() {
        let mut epochs = Epochs::default();
        let partition = Partition::new(7).unwrap();
        assert!(epochs.raise(partition, 3) && !epochs.raise(partition, 2));
        let value = |value: Bytes| Versioned { value, version: 1 };
        assert!(write(&epochs).starts_with(b"0 0 0 0 0 0 0 3 0"));
        assert_eq!(read("k", &value(write(&epochs))).unwrap(), epochs);
        for wrong in ["", "1 2", "x"] {
            assert!(read("k", &value(wrong.into())).is_err(), "{wrong}");
        }
    }
}
