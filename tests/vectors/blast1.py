#!/usr/bin/env python3
"""Independent reference of the `dqkd-blast-1` extractor (design: docs/blast-engine.md).

Standard library only, written for clarity, not speed. It is the referee for the Rust engine:
`blast1.py vectors` prints the JSON test vectors, `blast1.py params M` prints the sample size for
M output bits, `blast1.py selftest` checks ChaCha20 and the algebra.
"""
import hashlib
import json
import math
import struct
import sys

SUITE = b"dqkd-blast-1"
WORD_BITS = 64
CONFIRM_BYTES = 16
ALPHA = 0.5        # share of an honest pool that may leak (as affine functions)
TARGET_BITS = 132  # each error term is at most 2^-132


# ---------- parameters ----------

def divergence(delta, alpha=ALPHA):
    """Binary relative entropy D(delta || alpha) in bits."""
    total = 0.0
    if delta > 0:
        total += delta * math.log2(delta / alpha)
    if delta < 1:
        total += (1 - delta) * math.log2((1 - delta) / (1 - alpha))
    return total


def words_per_pool(output_bits):
    """Smallest k with some delta: k*D(delta||1/2) >= 132 and (1-delta)*64*k >= output_bits + 132."""
    k = TARGET_BITS
    while True:
        if k * divergence(1.0) >= TARGET_BITS:
            low, high = ALPHA, 1.0
            for _ in range(100):
                mid = (low + high) / 2
                if k * divergence(mid) >= TARGET_BITS:
                    high = mid
                else:
                    low = mid
            if (1 - high) * WORD_BITS * k >= output_bits + TARGET_BITS:
                return k
        k += 1


# ---------- ChaCha20 keystream: 64-bit counter and 64-bit stream id, both zero ----------

def _rotl(x, n):
    return ((x << n) | (x >> (32 - n))) & 0xFFFFFFFF


def _quarter(s, a, b, c, d):
    s[a] = (s[a] + s[b]) & 0xFFFFFFFF; s[d] = _rotl(s[d] ^ s[a], 16)
    s[c] = (s[c] + s[d]) & 0xFFFFFFFF; s[b] = _rotl(s[b] ^ s[c], 12)
    s[a] = (s[a] + s[b]) & 0xFFFFFFFF; s[d] = _rotl(s[d] ^ s[a], 8)
    s[c] = (s[c] + s[d]) & 0xFFFFFFFF; s[b] = _rotl(s[b] ^ s[c], 7)


def chacha20_blocks(key):
    counter = 0
    constants = struct.unpack("<4I", b"expand 32-byte k")
    words = struct.unpack("<8I", key)
    while True:
        state = list(constants + words + (counter & 0xFFFFFFFF, counter >> 32, 0, 0))
        work = state[:]
        for _ in range(10):
            _quarter(work, 0, 4, 8, 12); _quarter(work, 1, 5, 9, 13)
            _quarter(work, 2, 6, 10, 14); _quarter(work, 3, 7, 11, 15)
            _quarter(work, 0, 5, 10, 15); _quarter(work, 1, 6, 11, 12)
            _quarter(work, 2, 7, 8, 13); _quarter(work, 3, 4, 9, 14)
        yield struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(work, state)))
        counter += 1


def keystream(key, length):
    out = bytearray()
    for block in chacha20_blocks(key):
        out += block
        if len(out) >= length:
            return bytes(out[:length])


# ---------- the extractor ----------

def sub_seed(label, *parts):
    return hashlib.sha3_256(SUITE + b" " + label + b"\x00" + b"".join(parts)).digest()


def positions(seed, pool_index, pool_id, pool_words, k):
    """k distinct word positions: u32 little-endian, masked, repeats skipped."""
    key = sub_seed(b"sample", bytes([pool_index]), pool_id, seed)
    seen, chosen = set(), []
    for block in chacha20_blocks(key):
        for word in struct.unpack("<16I", block):
            position = word & (pool_words - 1)
            if position in seen:
                continue
            seen.add(position)
            chosen.append(position)
            if len(chosen) == k:
                return chosen


def extract(seed, pools, output_bytes):
    """pools: list of (pool_id 16 bytes, pool bytes). Returns output_bytes bytes."""
    output_bits = 8 * output_bytes
    k = words_per_pool(output_bits)
    sample = b"".join(
        data[8 * p:8 * p + 8]
        for i, (pool_id, data) in enumerate(pools)
        for p in positions(seed, i, pool_id, len(data) // 8, k)
    )
    n = 8 * len(sample)
    diagonal_bits = n + output_bits - 1
    stream = keystream(sub_seed(b"toeplitz", seed), (diagonal_bits + 7) // 8)
    diagonal = int.from_bytes(stream, "little") & ((1 << diagonal_bits) - 1)
    x = int.from_bytes(sample, "little")
    # y_r = XOR over c of diagonal[r - c + n - 1] & x[c]: bits n-1 .. n-1+m-1 of the product over GF(2)[z]
    product = 0
    while x:
        low = x & -x
        product ^= diagonal << (low.bit_length() - 1)
        x ^= low
    y = (product >> (n - 1)) & ((1 << output_bits) - 1)
    return y.to_bytes(output_bytes, "little")


def derive_keys(seed, mask_seed, pools, key_ids, key_bytes):
    """Returns (keys, confirm): what both sites compute for one batch."""
    y = extract(seed, pools, key_bytes * len(key_ids) + CONFIRM_BYTES)
    keys = []
    for j, key_id in enumerate(key_ids):
        mask = hashlib.shake_256(SUITE + b" mask\x00" + mask_seed + key_id).digest(key_bytes)
        part = y[j * key_bytes:(j + 1) * key_bytes]
        keys.append(bytes(a ^ b for a, b in zip(part, mask)))
    return keys, y[-CONFIRM_BYTES:]


# ---------- vectors and checks ----------

def test_pool(index, pool_words):
    pool_id = hashlib.shake_128(b"pool-id" + bytes([index])).digest(16)
    return pool_id, hashlib.shake_256(b"pool" + bytes([index])).digest(8 * pool_words)


def vector(name, pool_count, pool_words, key_bytes, key_count, full=True):
    seed = hashlib.sha3_256(b"seed" + name.encode()).digest()
    mask_seed = hashlib.sha3_256(b"mask" + name.encode()).digest()
    pools = [test_pool(i, pool_words) for i in range(pool_count)]
    key_ids = [hashlib.shake_128(b"id" + bytes([j])).digest(16) for j in range(key_count)]
    keys, confirm = derive_keys(seed, mask_seed, pools, key_ids, key_bytes)
    k = words_per_pool(8 * (key_bytes * key_count + CONFIRM_BYTES))
    out = {
        "name": name, "pools": pool_count, "pool_words": pool_words, "words_per_pool": k,
        "seed": seed.hex(), "mask_seed": mask_seed.hex(), "key_bytes": key_bytes,
        "pool_ids": [p[0].hex() for p in pools],
        "first_positions": [positions(seed, i, p[0], pool_words, 8) for i, p in enumerate(pools)],
        "key_ids": [i.hex() for i in key_ids], "confirm": confirm.hex(),
    }
    if full:
        out["keys"] = [key.hex() for key in keys]
    else:
        out["keys_sha3_256"] = hashlib.sha3_256(b"".join(keys)).hexdigest()
    return out


def selftest():
    assert keystream(bytes(32), 32).hex() == "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    pools = [test_pool(i, 1 << 12) for i in range(3)]
    seed = bytes(range(32))
    a = extract(seed, pools, 48)
    zero = extract(seed, [(p, bytes(len(d))) for p, d in pools], 48)
    other = [(p, hashlib.shake_256(d).digest(len(d))) for p, d in pools]
    b = extract(seed, other, 48)
    both = extract(seed, [(p, bytes(u ^ v for u, v in zip(d, e))) for (p, d), (_, e) in zip(pools, other)], 48)
    assert zero == bytes(48)
    assert both == bytes(u ^ v for u, v in zip(a, b)), "the extractor must be linear in the pools"
    assert extract(seed, pools[::-1], 48) != a, "pool order is bound"
    print("selftest: ChaCha20, zero, linearity and pool order hold")


if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else "selftest"
    if command == "params":
        print(words_per_pool(int(sys.argv[2])))
    elif command == "vectors":
        print(json.dumps([
            vector("one-256-bit-key", 3, 1 << 14, 32, 1),
            vector("two-pools", 2, 1 << 14, 32, 1),
            vector("eight-pools", 8, 1 << 14, 16, 3),
            vector("batch-of-16", 3, 1 << 15, 32, 16),
            vector("batch-of-64", 3, 1 << 15, 32, 64, full=False),
            vector("one-byte", 3, 1 << 14, 1, 1),
            vector("odd-length", 5, 1 << 14, 37, 5),
            vector("one-65536-bit-key", 3, 1 << 16, 8192, 1, full=False),
        ], indent=1))
    else:
        selftest()
