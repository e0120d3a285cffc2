//! Splits what is too large for one message of the bus.

/// Items in groups, in their order: each of at most `most` items and `room` bytes. Items that are larger
/// than the room alone come back apart.
pub(crate) fn split<T>(
    items: impl IntoIterator<Item = (T, usize)>,
    most: usize,
    room: usize,
) -> (Vec<Vec<T>>, Vec<T>) {
    let (mut groups, mut too_large) = (Vec::<Vec<T>>::new(), Vec::new());
    let mut used = 0;
    for (item, bytes) in items {
        if bytes > room {
            too_large.push(item);
            continue;
        }
        used += bytes;
        match groups.last_mut() {
            Some(group) if group.len() < most && used <= room => group.push(item),
            _ => {
                used = bytes;
                groups.push(vec![item]);
            }
        }
    }
    (groups, too_large)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_bounded_by_number_and_by_bytes() {
        let (groups, too_large) = split((1..=7).map(|item| (item, 10)), 3, 1000);
        assert_eq!((groups, too_large), (vec![vec![1, 2, 3], vec![4, 5, 6], vec![7]], vec![]));
        let sizes = [40, 60, 1, 101, 100, 0, 50, 50];
        let (groups, too_large) = split((0..).zip(sizes), 500, 100);
        assert_eq!((groups, too_large), (vec![vec![0, 1], vec![2], vec![4, 5], vec![6, 7]], vec![3]));
    }
}
