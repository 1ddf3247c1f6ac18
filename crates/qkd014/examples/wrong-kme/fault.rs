//! The deviations that this KME can have, one at a time. All were seen in real KMEs.

/// Makes the enum, its names and its descriptions from one list.
macro_rules! faults {
    ($($variant:ident $name:literal $about:literal,)*) => {
        /// One deviation from the standard or from its safe reading.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Fault {
            $(#[doc = $about] $variant,)*
        }

        impl Fault {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As on the command line.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What the KME does.
            pub(crate) fn about(self) -> &'static str {
                match self { $(Self::$variant => $about,)* }
            }
        }
    };
}

faults! {
    NoCertificateNeeded "no-certificate-needed" "serves clients without a certificate as its first SAE",
    AnyCa "any-ca" "does not check who signed a client certificate",
    HeaderNamesSae "header-names-sae" "believes a header that names another SAE",
    UnregisteredServed "unregistered-served" "serves certificates of the CA that name no registered SAE",

    NumbersAsText "numbers-as-text" "status has its numbers as strings",
    StatusMemberMissing "status-member-missing" "status lacks max_SAE_ID_count",
    StatusRolesSwapped "status-roles-swapped" "status names the caller as slave",
    CountOverMax "count-over-max" "status counts more keys than max_key_count",
    StatusOfUnknownSae "status-of-unknown-sae" "status of an SAE that does not exist is 200",
    KeysForUnknownSae "keys-for-unknown-sae" "hands out keys for an SAE that does not exist",
    OwnIdServed "own-id-served" "hands out keys that the caller shares with itself",

    FewerKeys "fewer-keys" "answers with at most two keys, whatever number asks for",
    ShortWhenEmpty "short-when-empty" "hands out what is left when number asks for more",
    CountStale "count-stale" "status counts keys that are used up",
    NumberZero "number-zero" "number=0 is 200 with no keys",
    NumberText "number-text" "a number that is no integer counts as 1",
    OverMaximum "over-maximum" "hands out more keys than max_key_per_request",
    SizeIgnored "size-ignored" "every key has the default size",
    SizeTruncated "size-truncated" "a size that is no multiple of 8 is rounded down",
    SizeSentence "size-sentence" "the refusal of such a size has a sentence of its own",
    SameKeyAgain "same-key-again" "hands out every key in two containers",
    SameBytesAgain "same-bytes-again" "all keys of a container have the same bytes under different IDs",
    BrokenJsonServed "broken-json-served" "malformed JSON gets a key",
    NullRefused "null-refused" "an explicit null is 400",
    EmptyBodyRefused "empty-body-refused" "a POST of enc_keys without a body is 400",
    OthersRefused "others-refused" "a member that the standard does not know is 400",
    GetRefused "get-refused" "GET of enc_keys is 405",
    MandatoryIgnored "mandatory-ignored" "unknown mandatory extensions are ignored",
    MandatorySentence "mandatory-sentence" "their refusal has a sentence of its own",
    UnmetServed "unmet-served" "a mandatory option that cannot be met is ignored",
    OptionalRefused "optional-refused" "unknown optional extensions are 400 with a sentence of its own",
    AdditionalDropped "additional-dropped" "additional slaves are ignored",
    AdditionalUnchecked "additional-unchecked" "additional slaves that do not exist are accepted",

    KeysAsObject "keys-as-object" "one key comes as an object, not as an array of one",
    KeyShort "key-short" "every key is a byte short",
    Base64Unpadded "base64-unpadded" "keys lack the padding of base64",
    Base64Url "base64-url" "keys are in the URL-safe alphabet",
    IdNoUuid "id-no-uuid" "key IDs are numbers in a string",
    CacheAllowed "cache-allowed" "answers lack Cache-Control: no-store",

    PartialContainer "partial-container" "dec_keys leaves out the keys that it does not have",
    ServedTwice "served-twice" "dec_keys gives the same key again",
    RaceServed "race-served" "of many dec_keys at once several get the key",
    OtherBytes "other-bytes" "the slave gets other bytes than the master",
    MissingIs404 "missing-is-404" "a missing key is 404",
    MissingSentence "missing-sentence" "a missing key has a sentence of its own",
    ForeignServed "foreign-served" "any SAE gets any key",
    ForeignIs400 "foreign-is-400" "a key of others is 400, not 401",
    RefusedConsumes "refused-consumes" "a refused dec_keys uses up the keys that it names",
    WrongMasterServed "wrong-master-served" "dec_keys does not look at the master in the path",
    TwiceInOneServed "twice-in-one-served" "an ID named twice gets the key twice",
    UpperCaseMissing "upper-case-missing" "key IDs in upper case are not found",
    TextIdsServed "text-ids-served" "key_IDs as an array of strings is served",
    SecondSlaveLate "second-slave-late" "the first of several slaves uses the key up",

    TextErrors "text-errors" "errors are plain text",
    DetailErrors "detail-errors" "errors have detail, not message",
    DetailsObject "details-object" "details of an error is an object",
    Html422 "html-422" "bad requests are 422 with a page of HTML",
    KeyInError "key-in-error" "a refused dec_keys quotes the key",
    SlashRedirects "slash-redirects" "a trailing slash is redirected",
    VerbIs500 "verb-is-500" "a wrong verb is 500",
}

/// The deviation in force, if any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults(Option<Fault>);

impl Faults {
    /// The fault called `name`.
    pub(crate) fn named(name: Option<&str>) -> anyhow::Result<Self> {
        let Some(name) = name else { return Ok(Self(None)) };
        let fault = Fault::ALL.iter().copied().find(|fault| fault.name() == name);
        fault.map_or_else(
            || anyhow::bail!("no fault is called {name}; see --list-faults"),
            |it| Ok(Self(Some(it))),
        )
    }

    /// Whether `fault` is in force.
    pub(crate) fn has(self, fault: Fault) -> bool {
        self.0 == Some(fault)
    }
}
