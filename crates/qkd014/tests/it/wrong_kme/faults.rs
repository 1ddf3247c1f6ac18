//! Which rows of the tester's table name which fault of `examples/wrong-kme`, and in which words.

/// One fault and its marks in a report.
pub(super) struct Expected {
    /// Its name in `--list-faults`.
    pub(super) fault: &'static str,
    /// Rows that must fail, each with words that it must contain: what was required, or what came instead.
    pub(super) named_by: &'static [(u64, &'static [&'static str])],
    /// Other rows that may meet the fault.
    pub(super) also: Also,
}

/// Rows that may fail in addition to those that name a fault.
pub(super) enum Also {
    /// These.
    Rows(&'static [u64]),
    /// All that receive a key container: the fault is in every container.
    Containers,
    /// All that receive an error: the fault is in every error.
    Errors,
}

impl Also {
    pub(super) fn contain(&self, row: u64) -> bool {
        match self {
            Self::Rows(rows) => rows.contains(&row),
            // Before: the connection and status. After: what has neither keys.
            Self::Containers => ![1, 3, 4, 5, 6, 8, 9, 17, 18, 19, 23, 34, 43, 50].contains(&row),
            Self::Errors => {
                ![1, 2, 3, 8, 10, 11, 12, 13, 14, 16, 21, 22, 26, 31, 32, 40, 42, 46, 54].contains(&row)
            }
        }
    }
}

const NONE: Also = Also::Rows(&[]);

const fn fault(
    fault: &'static str,
    named_by: &'static [(u64, &'static [&'static str])],
    also: Also,
) -> Expected {
    Expected { fault, named_by, also }
}

/// All faults, in the order of `--list-faults`.
pub(super) const EXPECTED: &[Expected] = &[
    fault("no-certificate-needed", &[(4, &["200"])], NONE),
    fault("any-ca", &[(5, &["200"])], NONE),
    fault("header-names-sae", &[(7, &["master_SAE_ID"])], NONE),
    fault("unregistered-served", &[(6, &["401", "200"])], NONE),
    fault("numbers-as-text", &[(8, &["integer", "key_size"])], Also::Rows(&[45])),
    fault("status-member-missing", &[(8, &["max_SAE_ID_count"])], Also::Rows(&[27])),
    fault("status-roles-swapped", &[(8, &["master_SAE_ID"])], Also::Rows(&[7])),
    fault("count-over-max", &[(8, &["stored_key_count", "max_key_count"])], Also::Rows(&[45])),
    fault("status-of-unknown-sae", &[(9, &["400", "200"])], NONE),
    fault("keys-for-unknown-sae", &[(43, &["400", "200"])], NONE),
    fault("own-id-served", &[(43, &["400", "200"])], NONE),
    fault(
        "fewer-keys",
        &[(13, &["exactly the 3 keys asked for, not 2"]), (14, &["exactly the 3 keys asked for, not 2"])],
        Also::Rows(&[15, 31, 45]),
    ),
    fault("short-when-empty", &[(45, &["exactly the 64 keys asked for, not"])], NONE),
    fault("count-stale", &[(45, &["stored_key_count 0"])], NONE),
    fault("number-zero", &[(19, &["400", "200"])], NONE),
    fault("number-text", &[(19, &["400", "200"])], NONE),
    fault("over-maximum", &[(19, &["400", "200"])], NONE),
    fault(
        "size-ignored",
        &[(13, &["a key of 1024 bits", "not of 256"]), (14, &["a key of 1024 bits", "not of 256"])],
        Also::Rows(&[15, 16, 17, 18, 45]),
    ),
    fault("size-truncated", &[(17, &["a key of 257 bits", "not of 256"])], NONE),
    fault("size-sentence", &[(17, &["size shall be a multiple of 8"])], NONE),
    fault("same-key-again", &[(46, &["came again"])], Also::Containers),
    fault("same-bytes-again", &[(13, &["differ"]), (14, &["differ"])], Also::Rows(&[15, 31, 45])),
    fault("broken-json-served", &[(20, &["400", "200"])], NONE),
    fault("null-refused", &[(21, &["200", "400"])], NONE),
    fault("empty-body-refused", &[(11, &["200", "400"])], NONE),
    fault("others-refused", &[(22, &["200", "400"])], NONE),
    fault("get-refused", &[(12, &["200", "405"])], Also::Rows(&[6, 13, 15, 17, 18, 19, 22])),
    fault("mandatory-ignored", &[(23, &["400", "200"])], NONE),
    fault("mandatory-sentence", &[(23, &["not all extension_mandatory parameters are supported"])], NONE),
    fault("unmet-served", &[(24, &["400", "200"])], NONE),
    fault("optional-refused", &[(25, &["not all extension_optional request options handled", "400"])], NONE),
    fault("additional-dropped", &[(27, &["200"]), (28, &["200"]), (29, &["A11", "400"])], Also::Rows(&[30])),
    fault("additional-unchecked", &[(28, &["400", "200"])], NONE),
    fault("keys-as-object", &[(10, &["array"])], Also::Containers),
    fault("key-short", &[(10, &["a key of 256 bits", "not of 248"])], Also::Containers),
    fault("base64-unpadded", &[(10, &["base64 with padding"])], Also::Containers),
    fault("base64-url", &[(13, &["standard base64"])], Also::Containers),
    fault("id-no-uuid", &[(10, &["UUID"])], Also::Containers),
    fault("cache-allowed", &[(54, &["no-store"])], NONE),
    fault("partial-container", &[(36, &["400", "200"])], Also::Rows(&[38])),
    fault("served-twice", &[(33, &["400", "200"])], Also::Rows(&[30, 47])),
    fault("race-served", &[(47, &["one"])], NONE),
    fault("other-bytes", &[(31, &["the same key bytes that the master received"])], Also::Containers),
    fault("missing-is-404", &[(34, &["400", "404"])], Also::Rows(&[30, 33, 36, 39, 47])),
    fault(
        "missing-sentence",
        &[(34, &["one or more keys specified are not found on KME"])],
        Also::Rows(&[30, 33, 36, 47]),
    ),
    fault("foreign-served", &[(37, &["401", "200"])], Also::Rows(&[38])),
    fault("foreign-is-400", &[(37, &["401", "400"])], Also::Rows(&[38])),
    fault("refused-consumes", &[(36, &["200", "400"])], Also::Rows(&[38])),
    fault("wrong-master-served", &[(39, &["400", "200"])], NONE),
    fault("twice-in-one-served", &[(41, &["400", "200"])], NONE),
    fault("upper-case-missing", &[(40, &["letters of a UUID have no case"])], NONE),
    fault("text-ids-served", &[(35, &["400", "200"])], NONE),
    fault("second-slave-late", &[(29, &["200", "400"])], Also::Rows(&[30])),
    fault("text-errors", &[(52, &["message"])], Also::Errors),
    fault("detail-errors", &[(52, &["message"])], Also::Errors),
    fault("details-object", &[(52, &["array of objects"])], NONE),
    fault("html-422", &[(18, &["400", "422"])], Also::Errors),
    fault("key-in-error", &[(52, &["no key"])], NONE),
    fault("slash-redirects", &[(51, &["307"])], NONE),
    fault("verb-is-500", &[(50, &["405", "500"])], Also::Rows(&[52])),
];

/// Faults that the lenient profile only notes: the standard leaves these points open.
pub(super) const NOTED_ONLY: &[&str] = &[
    "own-id-served",
    "count-stale",
    "number-zero",
    "null-refused",
    "empty-body-refused",
    "others-refused",
    "optional-refused",
    "cache-allowed",
    "wrong-master-served",
    "upper-case-missing",
    "twice-in-one-served",
    "text-ids-served",
];
