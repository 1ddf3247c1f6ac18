//! Which SAE belongs to which KME, and what an ID in a path means.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::{KmeId, SaeId};

/// Somebody that a key can be addressed to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "id", rename_all = "lowercase")]
pub enum Party {
    /// One SAE: only it may retrieve the key.
    Sae(SaeId),
    /// One KME: any admitted SAE of that site may retrieve the key.
    Kme(KmeId),
}

/// A party together with the site that serves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Recipient {
    /// Whom the key is for.
    pub party: Party,
    /// The KME that stores the party's copy of the key.
    pub kme: KmeId,
}

/// Why a directory is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// One ID names both an SAE and a KME, so paths would be ambiguous.
    #[error("ID {0} names both an SAE and a KME")]
    SaeAndKme(String),
    /// The same SAE is listed twice.
    #[error("SAE {0} is listed twice")]
    DuplicateSae(SaeId),
    /// The same KME is listed twice.
    #[error("KME {0} is listed twice")]
    DuplicateKme(KmeId),
    /// The KME of an SAE is neither this one nor a peer.
    #[error("SAE {sae} lives at KME {kme}, which is neither this KME nor a configured peer")]
    UnknownHome {
        /// The SAE.
        sae: SaeId,
        /// Its KME.
        kme: KmeId,
    },
}

/// The SAEs and KMEs that this site knows. Every request looks names up, so a lookup copies nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    local: KmeId,
    peers: BTreeSet<KmeId>,
    saes: HashMap<SaeId, Recipient>,
    /// This KME and the peers.
    kmes: HashMap<KmeId, Recipient>,
}

impl Directory {
    /// Checks and indexes the configured entries. `peers` are the other KMEs.
    ///
    /// # Errors
    /// [`DirectoryError`] names the first wrong entry.
    pub fn new(
        local: KmeId,
        peers: impl IntoIterator<Item = KmeId>,
        saes: impl IntoIterator<Item = (SaeId, KmeId)>,
    ) -> Result<Self, DirectoryError> {
        let mut known = BTreeSet::new();
        for peer in peers {
            if peer == local || known.contains(&peer) {
                return Err(DirectoryError::DuplicateKme(peer));
            }
            known.insert(peer);
        }
        let as_recipient = |kme: &KmeId| Recipient { party: Party::Kme(kme.clone()), kme: kme.clone() };
        let kmes =
            std::iter::once(&local).chain(&known).map(|kme| (kme.clone(), as_recipient(kme))).collect();
        let mut directory = Self { local, peers: known, saes: HashMap::new(), kmes };
        for (sae, kme) in saes {
            if directory.kmes.contains_key(sae.as_str()) {
                return Err(DirectoryError::SaeAndKme(sae.to_string()));
            }
            if !directory.kmes.contains_key(&kme) {
                return Err(DirectoryError::UnknownHome { sae, kme });
            }
            let recipient = Recipient { party: Party::Sae(sae.clone()), kme };
            if directory.saes.insert(sae.clone(), recipient).is_some() {
                return Err(DirectoryError::DuplicateSae(sae));
            }
        }
        Ok(directory)
    }

    /// This site's KME.
    pub fn local(&self) -> &KmeId {
        &self.local
    }

    /// The other KMEs.
    pub fn peers(&self) -> impl Iterator<Item = &KmeId> {
        self.peers.iter()
    }

    /// Whether `kme` is a configured peer.
    pub fn is_peer(&self, kme: &KmeId) -> bool {
        self.peers.contains(kme)
    }

    /// The KME that serves `sae`, when the SAE is listed.
    pub fn home_of(&self, sae: &SaeId) -> Option<&KmeId> {
        self.saes.get(sae).map(|recipient| &recipient.kme)
    }

    /// What an ID in a path names: an SAE, or else a KME.
    pub fn resolve(&self, id: &str) -> Option<&Recipient> {
        self.saes.get(id).or_else(|| self.kmes.get(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(saes: &[(&str, &str)]) -> Result<Directory, DirectoryError> {
        let saes: Vec<_> =
            saes.iter().map(|(sae, kme)| (sae.parse().unwrap(), kme.parse().unwrap())).collect();
        Directory::new("site-a".parse().unwrap(), ["site-b".parse().unwrap()], saes)
    }

    #[test]
    fn a_path_id_is_an_sae_first_then_a_kme() {
        let directory = directory(&[("bob", "site-b")]).unwrap();
        let bob = directory.resolve("bob").unwrap();
        assert_eq!((&bob.party, bob.kme.as_str()), (&Party::Sae("bob".parse().unwrap()), "site-b"));
        let site = directory.resolve("site-b").unwrap();
        assert_eq!(site.party, Party::Kme("site-b".parse().unwrap()));
        assert!(directory.resolve("mallory").is_none());
        assert!(directory.resolve("").is_none());
    }

    #[test]
    fn ambiguous_and_dangling_entries_are_refused() {
        assert_eq!(
            directory(&[("site-b", "site-b")]).unwrap_err(),
            DirectoryError::SaeAndKme("site-b".into())
        );
        assert_eq!(
            directory(&[("bob", "site-b"), ("bob", "site-a")]).unwrap_err(),
            DirectoryError::DuplicateSae("bob".parse().unwrap())
        );
        assert!(matches!(directory(&[("bob", "site-z")]).unwrap_err(), DirectoryError::UnknownHome { .. }));
        let twice = Directory::new("a".parse().unwrap(), ["a".parse().unwrap()], []);
        assert_eq!(twice.unwrap_err(), DirectoryError::DuplicateKme("a".parse().unwrap()));
    }
}
