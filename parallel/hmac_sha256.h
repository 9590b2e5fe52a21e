// HMAC-SHA-256 (RFC 2104, FIPS 180-4): how ranks prove to each other that they know the secret of their run.
// For messages of some hundred bytes: written to be read, not for speed.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace carousel {

using Digest256 = std::array<uint8_t, 32>;

Digest256 Sha256(std::string_view data);
Digest256 HmacSha256(std::string_view key, std::string_view message);
// Takes the same time wherever they differ.
bool EqualDigests(const Digest256& a, const Digest256& b);
std::string Hex(const Digest256& digest);  // 64 lower-case digits
}  // namespace carousel
