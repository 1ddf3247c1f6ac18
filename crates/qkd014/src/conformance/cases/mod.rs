//! The tests, by topic: their numbers, titles and order.

mod case;
mod dec_keys;
mod edge;
mod enc_keys;
mod enc_refused;
mod load;
mod multicast;
mod odd_ids;
mod refused_ids;
mod status;
mod transport;
mod trouble;

pub(super) use case::Case;

/// How many tests there are: T1 to T54.
pub const TESTS: u32 = 54;

/// Every test, by number.
pub(super) fn all() -> Vec<Case> {
    let mut cases: Vec<Case> = transport::cases().into();
    cases.extend(status::cases());
    cases.extend(enc_keys::cases());
    cases.extend(enc_refused::cases());
    cases.extend(multicast::cases());
    cases.extend(dec_keys::cases());
    cases.extend(refused_ids::cases());
    cases.extend(odd_ids::cases());
    cases.extend(load::cases());
    cases.extend(trouble::cases());
    cases.extend(edge::cases());
    cases.sort_by_key(|case| case.number);
    cases
}

#[cfg(test)]
mod tests {
    use super::case::Phase;
    use super::*;

    #[test]
    fn every_number_from_1_to_54_is_there_once() {
        let numbers: Vec<u32> = all().iter().map(|case| case.number).collect();
        assert_eq!(numbers, (1..=TESTS).collect::<Vec<_>>());
    }

    #[test]
    fn what_disturbs_comes_after_what_does_not_and_sums_come_last() {
        assert!(
            Phase::Calm < Phase::Disturbs && Phase::Disturbs < Phase::Drains && Phase::Drains < Phase::Sums
        );
        let of =
            |phase: Phase| all().iter().filter(|case| case.phase == phase).map(|case| case.number).collect();
        let (disturbs, drains, sums): (Vec<_>, Vec<_>, Vec<_>) =
            (of(Phase::Disturbs), of(Phase::Drains), of(Phase::Sums));
        assert_eq!((disturbs, drains, sums), (vec![48, 49], vec![45], vec![52, 54]));
    }
}
