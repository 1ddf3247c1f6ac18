//! Known answers of hash, stream cipher, sealing, key wrap and product.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _, KeyWrapPadded as _};
use blast::{Product, multiply};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use sha3::{Digest as _, Sha3_256};
use shake::{ExtendableOutput as _, Shake256, Update as _, XofReader as _};

use super::Check;

/// FIPS 202 example: SHA3-256 of "abc".
const SHA3_256_ABC: &str = "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532";
/// FIPS 202 example: the last 32 of 168 bytes of SHAKE256 of 200 bytes a3. Crosses the rate on both sides.
const SHAKE256_A3_TAIL: &str = "512bb85a226c4243556e696f6bd072c5aa2d9b69730244b56853d16970ad817e";
/// RFC 8439, appendix A.1, test vectors 1 and 2: blocks 0 and 1 of the zero key.
const CHACHA20_ZERO_KEY: &str = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7\
    da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586\
    9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed\
    29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f";
/// Blocks 2^32 - 1 and 2^32 (first halves) of key 00..1f, by `tests/vectors/blast1.py`: the block counter has
/// 64 bits and carries into the word that RFC 8439 gives to its nonce.
const CHACHA20_BEFORE_CARRY: &str = "1ce0deb8925fccea2d5587e850054559edcbbeb1a6c8e1c02c1e89abba08b01c";
const CHACHA20_AFTER_CARRY: &str = "d838fb09536e2e3a10e8f23f486273a69f42d8e640d781ede384793c34c32564";

/// Test case 16 of "The Galois/Counter Mode of Operation" (McGrew, Viega).
const GCM_KEY: &str = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";
const GCM_NONCE: &str = "cafebabefacedbaddecaf888";
const GCM_AAD: &str = "feedfacedeadbeeffeedfacedeadbeefabaddad2";
const GCM_PLAIN: &str = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
    1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39";
const GCM_SEALED: &str = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
    8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b";

/// RFC 3394, section 4.6: 256 bits under a 256-bit key.
const WRAP_KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const WRAP_PLAIN: &str = "00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f";
const WRAPPED: &str = "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21";
/// The seven bytes of RFC 5649, section 6, under the 256-bit key above (that RFC has 192-bit examples only);
/// value by OpenSSL 3, `aes-256-wrap-pad`.
const PADDED_PLAIN: &str = "466f7250617369";
const PADDED_WRAPPED: &str = "443b17837bb39348610d19202df8a1f9";

/// Every primitive, in the order of the report.
pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![
        Check::new("SHA3-256", equal(&Sha3_256::digest(b"abc"), SHA3_256_ABC)),
        Check::new("SHAKE256", shake256()),
        Check::new("ChaCha20 keystream", chacha20_keystream()),
        Check::new("ChaCha20 64-bit counter", chacha20_carry()),
        Check::new("AES-256-GCM", aes_gcm()),
        Check::new("AES-256 key wrap (RFC 3394)", key_wrap()),
        Check::new("AES-256 key wrap with padding (RFC 5649)", key_wrap_padded()),
    ];
    for product in Product::available().into_iter().filter(|product| *product != Product::Portable) {
        checks.push(Check::new(format!("{} equals the portable product", product.name()), same(product)));
    }
    checks
}

fn equal(found: &[u8], expected_hex: &str) -> Result<(), String> {
    if hex::encode(found) == expected_hex { Ok(()) } else { Err("wrong answer".to_owned()) }
}

fn bytes(text: &str) -> Result<Vec<u8>, String> {
    hex::decode(text).map_err(|_| "bad constant".to_owned())
}

fn shake256() -> Result<(), String> {
    let mut hash = Shake256::default();
    hash.update(&[0xa3; 200]);
    let mut output = [0; 168];
    hash.finalize_xof().read(&mut output);
    equal(output.last_chunk::<32>().ok_or("short output")?, SHAKE256_A3_TAIL)
}

fn chacha20_keystream() -> Result<(), String> {
    let mut output = [0; 128];
    ChaCha20Rng::from_seed([0; 32]).fill_bytes(&mut output);
    equal(&output, CHACHA20_ZERO_KEY)
}

fn chacha20_carry() -> Result<(), String> {
    let mut key = [0; 32];
    key.iter_mut().zip(0..).for_each(|(byte, value)| *byte = value);
    let mut stream = ChaCha20Rng::from_seed(key);
    stream.set_word_pos(16 * u128::from(u32::MAX));
    let mut blocks = [0; 128];
    stream.fill_bytes(&mut blocks);
    let (before, after) = blocks.split_at(64);
    equal(before.first_chunk::<32>().ok_or("short output")?, CHACHA20_BEFORE_CARRY)?;
    equal(after.first_chunk::<32>().ok_or("short output")?, CHACHA20_AFTER_CARRY)
}

fn aes_gcm() -> Result<(), String> {
    let refused = |_| "refused by the library".to_owned();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes(GCM_KEY)?).map_err(refused)?);
    let nonce = || Nonce::try_assume_unique_for_key(&bytes(GCM_NONCE)?).map_err(refused);
    let aad = bytes(GCM_AAD)?;
    let mut text = bytes(GCM_PLAIN)?;
    key.seal_in_place_append_tag(nonce()?, Aad::from(&aad), &mut text).map_err(refused)?;
    equal(&text, GCM_SEALED)?;
    equal(key.open_in_place(nonce()?, Aad::from(&aad), &mut text).map_err(refused)?, GCM_PLAIN)?;
    let mut forged = bytes(GCM_SEALED)?;
    forged.iter_mut().take(1).for_each(|byte| *byte ^= 1);
    match key.open_in_place(nonce()?, Aad::from(&aad), &mut forged) {
        Ok(_) => Err("a forged text was accepted".to_owned()),
        Err(_) => Ok(()),
    }
}

fn wrap_key() -> Result<AesKek, String> {
    AesKek::new(&AES_256, &bytes(WRAP_KEY)?).map_err(|_| "refused by the library".to_owned())
}

fn key_wrap() -> Result<(), String> {
    let refused = |_| "refused by the library".to_owned();
    let mut output = [0; 40];
    equal(wrap_key()?.wrap(&bytes(WRAP_PLAIN)?, &mut output).map_err(refused)?, WRAPPED)?;
    let mut plain = [0; 40];
    equal(wrap_key()?.unwrap(&output, &mut plain).map_err(refused)?, WRAP_PLAIN)?;
    output.iter_mut().take(1).for_each(|byte| *byte ^= 1);
    match wrap_key()?.unwrap(&output, &mut plain) {
        Ok(_) => Err("a forged key was accepted".to_owned()),
        Err(_) => Ok(()),
    }
}

fn key_wrap_padded() -> Result<(), String> {
    let refused = |_| "refused by the library".to_owned();
    let (mut output, mut plain) = ([0; 32], [0; 32]);
    let wrapped = wrap_key()?.wrap_with_padding(&bytes(PADDED_PLAIN)?, &mut output).map_err(refused)?;
    equal(wrapped, PADDED_WRAPPED)?;
    equal(wrap_key()?.unwrap_with_padding(wrapped, &mut plain).map_err(refused)?, PADDED_PLAIN)
}

/// The product of pseudo-random words, on `product` and portable.
fn same(product: Product) -> Result<(), String> {
    let mut stream = ChaCha20Rng::from_seed([1; 32]);
    let mut words = |count| -> Vec<u64> { (0..count).map(|_| stream.next_u64()).collect() };
    for (sample_words, output_words) in [(1, 1), (37, 11), (96, 30)] {
        let (sample, diagonal) = (words(sample_words), words(sample_words + output_words));
        let expected = multiply(Product::Portable, &diagonal, &sample, output_words);
        if *multiply(product, &diagonal, &sample, output_words) != *expected {
            return Err("products differ".to_owned());
        }
    }
    Ok(())
}
