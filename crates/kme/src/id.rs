//! Identifiers. Names are opaque text: ETSI GS QKD 014, clause 4, leaves their format free.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};
use uuid::Uuid;

use super::{Random, RandomError};

/// Why text is not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Empty, or white space only.
    #[error("an ID must not be blank")]
    Blank,
    /// Longer than [`MAX_NAME_BYTES`].
    #[error("an ID has at most {MAX_NAME_BYTES} bytes")]
    TooLong,
    /// Contains a character that nobody sees: see [`is_visible`].
    #[error("an ID must not contain control, format or other invisible characters")]
    Invisible,
    /// Not a UUID in its 36-character text form.
    #[error("not a UUID")]
    NotUuid,
}

/// Whether `text` is a SPIFFE trust domain: 1 to 255 lower-case letters, digits, dots, hyphens and
/// underscores.
pub fn is_trust_domain(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    (1..=255).contains(&text.len()) && text.bytes().all(allowed)
}

/// Longest SAE, KME or pool server ID in bytes (FortiOS configures SAE IDs of up to 291 characters).
pub const MAX_NAME_BYTES: usize = 512;

fn check_name(text: &str) -> Result<(), IdError> {
    if text.trim().is_empty() {
        return Err(IdError::Blank);
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(IdError::TooLong);
    }
    if !text.chars().all(is_visible) {
        return Err(IdError::Invisible);
    }
    Ok(())
}

/// Whether people see `c` as itself. Two IDs that look the same must be the same, and a log line must not change its
/// direction or end: so control and format characters are out (among them the bidirectional ones and those of no
/// width), and every white space but the plain space.
pub fn is_visible(c: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator, PrivateUse, SpaceSeparator};
    match c.general_category() {
        Control | Format | LineSeparator | ParagraphSeparator | PrivateUse => false,
        SpaceSeparator => c == ' ',
        // Letters and marks that Unicode lets a display leave out (Default_Ignorable_Code_Point).
        _ => !matches!(
            c,
            '\u{34f}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{2065}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fff8}'
                | '\u{e0000}'..='\u{e0fff}'
        ),
    }
}

/// Whether `text` can be a segment of the path of a SPIFFE ID: letters, digits, dots, hyphens and underscores, but not
/// `.` or `..` (SPIFFE-ID, section 2.2).
pub fn is_spiffe_segment(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !text.is_empty() && !matches!(text, "." | "..") && text.bytes().all(allowed)
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// The ID as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether `text` could be such an ID.
            ///
            /// # Errors
            /// [`IdError`] says why not.
            pub fn check(text: &str) -> Result<(), IdError> {
                check_name(text)
            }
        }

        /// Lets a map of IDs be searched by text.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                check_name(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name_id!(
    /// KME ID: one Key Management Entity, unique in the network (ETSI GS QKD 014, clause 4).
    KmeId
);
name_id!(
    /// SAE ID: one Secure Application Entity, unique in the network (ETSI GS QKD 014, clause 4).
    SaeId
);
name_id!(
    /// Name of a random pool server, the same in every site's configuration.
    PoolServerId
);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// Length of the text form.
            pub const TEXT_BYTES: usize = uuid::fmt::Hyphenated::LENGTH;

            /// From its 16 bytes, in the order of the text form.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its 16 bytes, in the order of the text form.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// Its text form, in lower case.
            pub fn text(&self) -> [u8; Self::TEXT_BYTES] {
                let mut text = [0; Self::TEXT_BYTES];
                Uuid::from_bytes(self.0).hyphenated().encode_lower(&mut text);
                text
            }

            /// A fresh UUIDv4.
            ///
            /// # Errors
            /// [`RandomError`] when the generator fails.
            pub fn draw(random: &dyn Random) -> Result<Self, RandomError> {
                let mut bytes = [0; 16];
                random.fill(&mut bytes)?;
                Ok(Self(into_version_4(bytes)))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            /// Accepts any UUID version in any case, in the hyphenated 36-character form only.
            fn from_str(text: &str) -> Result<Self, IdError> {
                if text.len() != Self::TEXT_BYTES {
                    return Err(IdError::NotUuid);
                }
                Uuid::try_parse(text).map(|uuid| Self(uuid.into_bytes())).map_err(|_| IdError::NotUuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Uuid::from_bytes(self.0).hyphenated().fmt(f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

uuid_id!(
    /// `key_ID` of ETSI GS QKD 014 (clause 6.3): a UUID, printed in lower case.
    KeyId
);
uuid_id!(
    /// One batch of keys that share seeds, one extraction and one push.
    BatchId
);
uuid_id!(
    /// One random pool at one pool server.
    PoolId
);
uuid_id!(
    /// One pool set: pools on several servers, for one source and one set of recipient sites.
    PoolSetId
);

const fn into_version_4(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

impl KeyId {
    /// First bytes that all key IDs of a batch share, so that they are neighbours in an index.
    pub const SHARED_PREFIX_BYTES: usize = 6;

    /// Whether all of `ids` begin with the same bytes, as those of one batch do.
    pub fn share_prefix(ids: &[Self]) -> bool {
        let prefix = |id: &Self| id.0.first_chunk::<{ Self::SHARED_PREFIX_BYTES }>().copied();
        ids.windows(2).all(|pair| matches!(pair, [one, next] if prefix(one) == prefix(next)))
    }

    /// `count` distinct UUIDv4 for one batch: six bytes are drawn for the batch, 74 bits for each key.
    ///
    /// # Errors
    /// [`RandomError`] when the generator fails.
    pub fn draw_batch(count: usize, random: &dyn Random) -> Result<Vec<Self>, RandomError> {
        let mut prefix = [0; Self::SHARED_PREFIX_BYTES];
        random.fill(&mut prefix)?;
        let mut ids: Vec<Self> = Vec::with_capacity(count);
        while ids.len() < count {
            let mut bytes = [0; 16];
            random.fill(&mut bytes)?;
            let (head, _) = bytes.split_at_mut(Self::SHARED_PREFIX_BYTES);
            head.copy_from_slice(&prefix);
            let id = Self(into_version_4(bytes));
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OsRandom;

    #[test]
    fn names_are_opaque_text_that_is_not_blank_and_that_people_see() {
        for good in ["alice", "CN=sae 1/é", "0", &"x".repeat(MAX_NAME_BYTES)] {
            assert_eq!(good.parse::<SaeId>().unwrap().as_str(), good);
        }
        assert_eq!(" ".parse::<SaeId>(), Err(IdError::Blank));
        assert_eq!("".parse::<KmeId>(), Err(IdError::Blank));
        for hidden in [
            "\n", "\u{202e}", "\u{2066}", "\u{200f}", "\u{200b}", "\u{feff}", "\u{a0}", "\u{2028}", "\u{ad}",
            "\u{3164}",
        ] {
            assert_eq!(format!("a{hidden}b").parse::<SaeId>(), Err(IdError::Invisible), "{hidden:?}");
        }
        assert_eq!("مرحبا שלום 東京 न".parse::<SaeId>().unwrap().as_str(), "مرحبا שלום 東京 न");
        assert_eq!("x".repeat(MAX_NAME_BYTES + 1).parse::<SaeId>(), Err(IdError::TooLong));
    }

    #[test]
    fn trust_domains_are_lower_case_and_bounded() {
        for good in ["dqkd.example", "a-b_c.1", &"x".repeat(255)] {
            assert!(is_trust_domain(good), "{good}");
        }
        for bad in ["", "Dqkd.example", "a b", "a/b", "é", &"x".repeat(256)] {
            assert!(!is_trust_domain(bad), "{bad}");
        }
    }

    #[test]
    fn key_ids_parse_in_any_case_and_print_in_lower_case() {
        let id: KeyId = "C328D7B5-D24A-4F9A-884E-DE1BB0F89666".parse().unwrap();
        assert_eq!(id.to_string(), "c328d7b5-d24a-4f9a-884e-de1bb0f89666");
        for bad in
            ["", "not-a-uuid", "c328d7b5d24a4f9a884ede1bb0f89666", "{c328d7b5-d24a-4f9a-884e-de1bb0f8966}"]
        {
            assert_eq!(bad.parse::<KeyId>(), Err(IdError::NotUuid), "{bad}");
        }
    }

    #[test]
    fn a_batch_of_key_ids_is_distinct_version_4_and_shares_six_bytes() {
        let ids = KeyId::draw_batch(64, &OsRandom).unwrap();
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), 64);
        for id in &ids {
            assert_eq!(id.as_bytes()[..6], ids[0].as_bytes()[..6]);
            let uuid = Uuid::from_bytes(*id.as_bytes());
            assert_eq!(uuid.get_version_num(), 4);
            assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
        }
        assert!(KeyId::share_prefix(&ids) && KeyId::share_prefix(&ids[..1]) && KeyId::share_prefix(&[]));
        let other = KeyId::draw_batch(1, &OsRandom).unwrap();
        assert_ne!(other[0].as_bytes()[..6], ids[0].as_bytes()[..6]);
        assert!(!KeyId::share_prefix(&[ids[0], other[0]]));
    }
}
