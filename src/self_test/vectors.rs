//! Vectors of the engine: parsing, test pools, comparison.
//!
//! Format: `docs/blast-engine.md`, section 6. Fields that a vector does not need are ignored;
//! `words_per_pool` and `first_positions` are checked where given.

use blast::{
    BatchSeeds, Confirm, MAX_POOL_WORDS, MAX_POOLS, MIN_POOL_WORDS, MIN_POOLS, Product, SourcePool,
    first_positions, generate_with, regenerate_with,
};
use kme::{Key, KeyId, PoolId, Seed};
use serde_json::{Map, Value};
use sha3::{Digest as _, Sha3_256};
use shake::{ExtendableOutput as _, Shake256, Update as _, XofReader as _};

use super::{Check, SelfTestError};

/// Most words of all pools of one vector (1 GiB).
const MAX_VECTOR_WORDS: usize = 1 << 27;

/// The keys that a vector expects.
enum ExpectedKeys {
    Whole(Vec<Vec<u8>>),
    Sha3([u8; 32]),
}

/// One vector, complete and within the sizes that its check can hold in memory.
pub(super) struct Vector {
    name: String,
    pool_words: usize,
    pool_ids: Vec<PoolId>,
    seeds: BatchSeeds,
    key_bytes: usize,
    key_ids: Vec<KeyId>,
    words_per_pool: Option<u32>,
    first_positions: Option<Vec<Vec<u32>>>,
    confirm: Confirm,
    keys: ExpectedKeys,
}

/// Every vector of the list, or the first fault in it.
pub(super) fn parse(json: &str) -> Result<Vec<Vector>, SelfTestError> {
    let value: Value = serde_json::from_str(json).map_err(SelfTestError::Json)?;
    let list = value.as_array().filter(|list| !list.is_empty()).ok_or(SelfTestError::NoVectors)?;
    list.iter()
        .zip(1..)
        .map(|(item, place)| Vector::parse(item.as_object().ok_or(SelfTestError::NoVectors)?, place))
        .collect()
}

/// The fields of one vector, with its name for errors.
struct Fields<'a> {
    vector: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn fault(&self, field: &'static str, problem: impl Into<String>) -> SelfTestError {
        SelfTestError::Field { vector: self.vector.clone(), field, problem: problem.into() }
    }

    fn value(&self, field: &'static str) -> Result<&'a Value, SelfTestError> {
        self.object.get(field).ok_or_else(|| self.fault(field, "is missing"))
    }

    fn list(&self, field: &'static str) -> Result<&'a [Value], SelfTestError> {
        let list = self.value(field)?.as_array().ok_or_else(|| self.fault(field, "must be a list"))?;
        Ok(list)
    }

    fn number(&self, field: &'static str) -> Result<usize, SelfTestError> {
        let number = self.value(field)?.as_u64().and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| self.fault(field, "must be a whole number"))
    }

    fn hex(&self, field: &'static str, value: &Value) -> Result<Vec<u8>, SelfTestError> {
        let text = value.as_str().ok_or_else(|| self.fault(field, "must be hex text"))?;
        hex::decode(text).map_err(|error| self.fault(field, format!("must be hex: {error}")))
    }

    fn fixed<const N: usize>(&self, field: &'static str, value: &Value) -> Result<[u8; N], SelfTestError> {
        let bytes = self.hex(field, value)?;
        let len = bytes.len();
        bytes.try_into().map_err(|_| self.fault(field, format!("has {len} bytes, not {N}")))
    }

    fn seed(&self, field: &'static str) -> Result<Seed, SelfTestError> {
        let bytes: [u8; Seed::LEN_BYTES] = self.fixed(field, self.value(field)?)?;
        Seed::copy_of(&bytes).ok_or_else(|| self.fault(field, "has a wrong length"))
    }

    fn ids<T>(&self, field: &'static str, id: impl Fn([u8; 16]) -> T) -> Result<Vec<T>, SelfTestError> {
        self.list(field)?.iter().map(|value| self.fixed(field, value).map(&id)).collect()
    }

    /// Number of words of each pool; the number of pools must match their IDs.
    fn pool_words(&self, pool_ids: usize) -> Result<usize, SelfTestError> {
        let pools = self.number("pools")?;
        if !(MIN_POOLS..=MAX_POOLS).contains(&pools) {
            return Err(self.fault("pools", format!("must be {MIN_POOLS} to {MAX_POOLS}")));
        }
        if pool_ids != pools {
            return Err(self.fault("pool_ids", format!("has {pool_ids} entries for {pools} pools")));
        }
        let words = self.number("pool_words")?;
        if !words.is_power_of_two() || !(MIN_POOL_WORDS..=MAX_POOL_WORDS).contains(&words) {
            let problem = format!("must be a power of two from {MIN_POOL_WORDS} to {MAX_POOL_WORDS}");
            return Err(self.fault("pool_words", problem));
        }
        if words * pools > MAX_VECTOR_WORDS {
            return Err(self.fault("pool_words", format!("makes more than {MAX_VECTOR_WORDS} words in all")));
        }
        Ok(words)
    }

    fn words_per_pool(&self) -> Result<Option<u32>, SelfTestError> {
        if !self.object.contains_key("words_per_pool") {
            return Ok(None);
        }
        let words = u32::try_from(self.number("words_per_pool")?);
        words.map(Some).map_err(|_| self.fault("words_per_pool", "is too large"))
    }

    fn first_positions(&self, pools: usize, words: usize) -> Result<Option<Vec<Vec<u32>>>, SelfTestError> {
        const FIELD: &str = "first_positions";
        if !self.object.contains_key(FIELD) {
            return Ok(None);
        }
        let positions = |list: &Value| -> Option<Vec<u32>> {
            let list = list.as_array().filter(|list| list.len() <= words / 4)?;
            list.iter().map(|position| u32::try_from(position.as_u64()?).ok()).collect()
        };
        let lists: Option<Vec<_>> = self.list(FIELD)?.iter().map(positions).collect();
        let lists = lists.filter(|lists| lists.len() == pools);
        let problem = "must be one list of positions for each pool, at most a quarter of it";
        lists.map(Some).ok_or_else(|| self.fault(FIELD, problem))
    }

    fn keys(&self, key_count: usize) -> Result<ExpectedKeys, SelfTestError> {
        const DIGEST: &str = "keys_sha3_256";
        if !self.object.contains_key("keys") {
            let digest = self.object.get(DIGEST);
            let digest = digest.ok_or_else(|| self.fault("keys", "is missing, and so is `keys_sha3_256`"))?;
            return self.fixed(DIGEST, digest).map(ExpectedKeys::Sha3);
        }
        let list = self.list("keys")?;
        if list.len() != key_count {
            let problem = format!("has {} entries for {key_count} key IDs", list.len());
            return Err(self.fault("keys", problem));
        }
        let keys: Result<_, _> = list.iter().map(|key| self.hex("keys", key)).collect();
        keys.map(ExpectedKeys::Whole)
    }
}

impl Vector {
    fn parse(object: &Map<String, Value>, place: usize) -> Result<Self, SelfTestError> {
        let mut fields = Fields { vector: format!("number {place}"), object };
        let name = fields.value("name")?.as_str();
        let name = name.ok_or_else(|| fields.fault("name", "must be text"))?.to_owned();
        fields.vector = format!("`{name}`");
        let pool_ids = fields.ids("pool_ids", PoolId::from_bytes)?;
        let pool_words = fields.pool_words(pool_ids.len())?;
        let key_ids = fields.ids("key_ids", KeyId::from_bytes)?;
        Ok(Self {
            pool_words,
            first_positions: fields.first_positions(pool_ids.len(), pool_words)?,
            pool_ids,
            seeds: BatchSeeds { seed: fields.seed("seed")?, mask_seed: fields.seed("mask_seed")? },
            key_bytes: fields.number("key_bytes")?,
            words_per_pool: fields.words_per_pool()?,
            confirm: Confirm::from_bytes(fields.fixed("confirm", fields.value("confirm")?)?),
            keys: fields.keys(key_ids.len())?,
            key_ids,
            name,
        })
    }

    /// One check for each product of this processor.
    pub(super) fn checks(&self) -> Vec<Check> {
        let words: Vec<_> =
            (0_u8..).zip(&self.pool_ids).map(|(i, _)| test_pool(i, self.pool_words)).collect();
        let pools: Vec<_> =
            self.pool_ids.iter().zip(&words).map(|(id, words)| SourcePool { id: *id, words }).collect();
        let check = |product: Product| {
            let outcome = self.check_positions().and_then(|()| self.check_on(product, &pools));
            Check::new(format!("{} ({})", self.name, product.name()), outcome)
        };
        Product::available().into_iter().map(check).collect()
    }

    fn check_positions(&self) -> Result<(), String> {
        for ((index, id), expected) in (0_u8..).zip(&self.pool_ids).zip(self.first_positions.iter().flatten())
        {
            if first_positions(&self.seeds.seed, index, id, self.pool_words, expected.len()) != *expected {
                return Err(format!("first_positions of pool {index} differ"));
            }
        }
        Ok(())
    }

    fn check_on(&self, product: Product, pools: &[SourcePool<'_>]) -> Result<(), String> {
        let refused = |error| format!("the engine refused: {error}");
        let batch =
            generate_with(product, pools, &self.seeds, self.key_bytes, &self.key_ids).map_err(refused)?;
        if let Some(expected) = self.words_per_pool.filter(|expected| *expected != batch.words_per_pool) {
            return Err(format!("words_per_pool is {}, not {expected}", batch.words_per_pool));
        }
        if batch.confirm != self.confirm {
            return Err("confirm differs".to_owned());
        }
        self.check_keys(&batch.keys)?;
        let (words, confirm) = (batch.words_per_pool, &self.confirm);
        regenerate_with(product, pools, &self.seeds, self.key_bytes, &self.key_ids, words, confirm)
            .map_err(|error| format!("the recipient refused: {error}"))
            .and_then(|keys| self.check_keys(&keys).map_err(|text| format!("at the recipient {text}")))
    }

    fn check_keys(&self, keys: &[Key]) -> Result<(), String> {
        match &self.keys {
            ExpectedKeys::Whole(expected) => {
                let differs =
                    |(key, expected): &(&Key, &Vec<u8>)| key.material.expose() != expected.as_slice();
                match keys.iter().zip(expected).position(|pair| differs(&pair)) {
                    Some(index) => Err(format!("key {index} differs")),
                    None if keys.len() != expected.len() => Err("the number of keys differs".to_owned()),
                    None => Ok(()),
                }
            }
            ExpectedKeys::Sha3(expected) => {
                let mut hash = Sha3_256::new();
                for key in keys {
                    sha3::Digest::update(&mut hash, key.material.expose());
                }
                let same = hash.finalize().as_slice() == expected;
                if same { Ok(()) } else { Err("keys_sha3_256 differs".to_owned()) }
            }
        }
    }
}

/// Test pool `index`: SHAKE256("pool" || byte index), as little-endian words.
fn test_pool(index: u8, words: usize) -> Vec<u64> {
    let mut hash = Shake256::default();
    hash.update(b"pool");
    hash.update(&[index]);
    let mut stream = hash.finalize_xof();
    let mut buffer = [0_u8; 4096];
    let mut pool = vec![0; words];
    for group in pool.chunks_mut(buffer.len() / 8) {
        stream.read(&mut buffer);
        for (word, bytes) in group.iter_mut().zip(buffer.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
    }
    pool
}
