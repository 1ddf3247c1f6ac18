//! A cache of verified signatures of certificates and revocation lists.
//!
//! Sessions are not resumed, so that each connection is checked against the certificates and lists in force.
//! Most of the cost is verifying the same signatures again: on the client's certificate and on the CA's list.
//! Whether a signature is good depends only on key, message and signature, so the result can be kept.
//! Everything else (times, names, uses, revocation, and the signature of the handshake) is checked every
//! time.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest::{Context, SHA256};
use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

/// Most signatures of one generation. Each algorithm keeps two generations, so memory is bounded and
/// signatures in use stay.
const GENERATION: usize = 2048;

/// Verifies as `algorithm` does, but each good signature only once.
struct Caching {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    good: Mutex<Generations>,
}

/// The good signatures, each as SHA-256 of key, message and signature.
#[derive(Default)]
struct Generations {
    young: HashSet<[u8; 32]>,
    old: HashSet<[u8; 32]>,
}

impl Generations {
    fn has(&mut self, signed: &[u8; 32]) -> bool {
        self.young.contains(signed) || self.old.remove(signed) && self.add(*signed)
    }

    /// Always `true`.
    fn add(&mut self, signed: [u8; 32]) -> bool {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(signed);
        true
    }
}

impl fmt::Debug for Caching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caching").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl SignatureVerificationAlgorithm for Caching {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let mut hash = Context::new(&SHA256);
        for part in [public_key, message, signature] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let mut signed = [0; 32];
        signed.copy_from_slice(hash.finish().as_ref());
        if self.good.lock().has(&signed) {
            return Ok(());
        }
        self.algorithm.verify_signature(public_key, message, signature)?;
        self.good.lock().add(signed);
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.algorithm.fips()
    }
}

/// `provider` with the cache, to verify chains and lists. The cache lives as long as the program.
pub(super) fn caching(provider: &CryptoProvider) -> Arc<CryptoProvider> {
    static ALGORITHMS: OnceLock<&'static [&'static dyn SignatureVerificationAlgorithm]> = OnceLock::new();
    let all = *ALGORITHMS.get_or_init(|| {
        let wrap = |algorithm: &&'static dyn SignatureVerificationAlgorithm| {
            let wrapped = Caching { algorithm: *algorithm, good: Mutex::default() };
            &*Box::leak(Box::new(wrapped)) as &'static dyn SignatureVerificationAlgorithm
        };
        let all: Vec<_> = provider.signature_verification_algorithms.all.iter().map(wrap).collect();
        Box::leak(all.into_boxed_slice())
    });
    let mapping = provider.signature_verification_algorithms.mapping;
    let algorithms = WebPkiSupportedAlgorithms { all, mapping };
    Arc::new(CryptoProvider { signature_verification_algorithms: algorithms, ..provider.clone() })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustls::pki_types::alg_id;

    use super::*;

    /// Accepts a signature that equals the message, and counts its calls.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl SignatureVerificationAlgorithm for Counting {
        fn verify_signature(
            &self,
            _: &[u8],
            message: &[u8],
            signature: &[u8],
        ) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::SeqCst);
            if message == signature { Ok(()) } else { Err(InvalidSignature) }
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ED25519
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ED25519
        }
    }

    fn counting() -> (&'static Counting, Caching) {
        let algorithm: &Counting = Box::leak(Box::default());
        (algorithm, Caching { algorithm, good: Mutex::default() })
    }

    #[test]
    fn a_good_signature_is_verified_once_and_any_other_part_makes_it_another() {
        let (counter, cache) = counting();
        for _ in 0..3 {
            cache.verify_signature(b"key", b"message", b"message").unwrap();
        }
        assert_eq!(counter.0.load(Ordering::SeqCst), 1);
        cache.verify_signature(b"other", b"message", b"message").unwrap();
        cache.verify_signature(b"key", b"other", b"other").unwrap();
        // The same bytes, split elsewhere.
        assert!(cache.verify_signature(b"keym", b"essage", b"message").is_err());
        assert_eq!(counter.0.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn a_bad_signature_stays_bad_beside_the_good_one() {
        let (counter, cache) = counting();
        cache.verify_signature(b"key", b"message", b"message").unwrap();
        for _ in 0..3 {
            assert!(cache.verify_signature(b"key", b"message", b"messagf").is_err());
        }
        assert_eq!(counter.0.load(Ordering::SeqCst), 4, "bad ones are not kept");
    }

    #[test]
    fn the_cache_is_bounded_and_what_is_in_use_stays() {
        let (counter, cache) = counting();
        let used = b"used".as_slice();
        for number in 0..5 * GENERATION {
            let message = number.to_be_bytes();
            cache.verify_signature(b"key", &message, &message).unwrap();
            cache.verify_signature(b"key", used, used).unwrap();
        }
        assert_eq!(counter.0.load(Ordering::SeqCst), 5 * GENERATION + 1);
        let good = cache.good.lock();
        assert!(good.young.len() <= GENERATION && good.old.len() <= GENERATION);
    }
}
