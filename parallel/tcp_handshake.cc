#include "parallel/tcp_handshake.h"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/base/check.h"
#include "parallel/hmac_sha256.h"

namespace carousel {
namespace {
constexpr std::string_view kMagic = "CARSEL01";
constexpr size_t kVerdictHeadBytes = 2;  // code, length of the text

void Append(std::string* out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}
uint64_t Number(std::string_view in, size_t begin, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) {
    value |= uint64_t{static_cast<uint8_t>(in[begin + static_cast<size_t>(i)])} << (8 * i);
  }
  return value;
}

// The two ends hash different words, so that neither can be answered with its own proof.
Digest256 Proof(const std::string& secret, const char* role, const std::string& transcript) {
  return HmacSha256(secret, std::string("carousel ") + role + '\0' + transcript);
}
void Append(std::string* out, const Digest256& digest) { out->append(digest.begin(), digest.end()); }
bool IsProof(std::string_view bytes, const Digest256& expected) {
  Digest256 given{};
  std::copy_n(bytes.begin(), given.size(), given.begin());
  return EqualDigests(given, expected);
}
}  // namespace

Nonce RandomNonce() {
  Nonce nonce;
  ssize_t n = -1;
  do {
    n = getrandom(nonce.data(), nonce.size(), 0);
  } while (n < 0 && errno == EINTR);
  CAROUSEL_CHECK_EQ(n, static_cast<ssize_t>(nonce.size()));
  return nonce;
}

std::string Handshake::TakeOutput() { return std::exchange(output_, std::string()); }

size_t Handshake::Feed(std::string_view bytes) {
  size_t taken = 0;
  while (taken < bytes.size() && wanted() > 0) {
    const size_t n = std::min(bytes.size() - taken, wanted());
    input_.append(bytes.substr(taken, n));
    taken += n;
    Look();
    if (state_ == State::kGoesOn && input_.size() == PartBytes()) Advance();
  }
  return taken;
}

void Handshake::Fail(const std::string& why) {
  state_ = State::kFailed;
  error_ = why;
}

ConnectorHandshake::ConnectorHandshake(const std::string& secret, const Introduction& introduction,
                                       const Nonce& nonce)
    : secret_(secret) {
  transcript_ = kMagic;
  Append(&transcript_, introduction.world_size, 4);
  Append(&transcript_, introduction.from, 4);
  Append(&transcript_, introduction.to, 4);
  Append(&transcript_, introduction.group, 8);
  transcript_.append(nonce.begin(), nonce.end());
  output_ = transcript_;
}

// The length of a verdict's text stands in its head.
size_t ConnectorHandshake::PartBytes() const {
  if (!proved_) return std::tuple_size_v<Nonce>;
  if (input_.size() < kVerdictHeadBytes) return kVerdictHeadBytes;
  return kVerdictHeadBytes + static_cast<uint8_t>(input_[1]) + kProofBytes;
}

void ConnectorHandshake::Look() {
  if (proved_ && input_.size() >= kVerdictHeadBytes && static_cast<uint8_t>(input_[1]) > kMaxVerdictText) {
    Fail("the other end does not speak this program's protocol");
  }
}

void ConnectorHandshake::Advance() {
  if (!proved_) {
    transcript_ += input_;
    Append(&output_, Proof(secret_, "connector", transcript_));
    proved_ = true;
    input_.clear();
    return;
  }
  const std::string verdict = input_.substr(0, input_.size() - kProofBytes);
  if (!IsProof(std::string_view(input_).substr(verdict.size()),
               Proof(secret_, "acceptor", transcript_ + verdict))) {
    Fail("the other end does not know this run's secret");
  } else if (verdict[0] != 0) {
    refused_ = true;
    Fail(verdict.substr(kVerdictHeadBytes));
  } else {
    Done();
  }
}

AcceptorHandshake::AcceptorHandshake(const std::string& secret, const Nonce& nonce, Judge judge)
    : secret_(secret), nonce_(nonce), judge_(std::move(judge)) {}

// A stranger is turned away at the first wrong byte.
void AcceptorHandshake::Look() {
  if (greeted_) return;
  const size_t n = std::min(input_.size(), kMagic.size());
  if (std::string_view(input_).substr(0, n) != kMagic.substr(0, n)) Fail("not a rank");
}

void AcceptorHandshake::Advance() {
  if (!greeted_) {
    transcript_ = input_;
    transcript_.append(nonce_.begin(), nonce_.end());
    output_.append(nonce_.begin(), nonce_.end());
    introduction_ = {.world_size = static_cast<uint32_t>(Number(input_, 8, 4)),
                     .from = static_cast<uint32_t>(Number(input_, 12, 4)),
                     .to = static_cast<uint32_t>(Number(input_, 16, 4)),
                     .group = Number(input_, 20, 8)};
    greeted_ = true;
    input_.clear();
    return;
  }
  if (!IsProof(input_, Proof(secret_, "connector", transcript_))) {
    Fail("does not know this run's secret");
    return;
  }
  const std::string why = judge_(introduction_).substr(0, kMaxVerdictText);
  std::string verdict = {static_cast<char>(why.empty() ? 0 : 1), static_cast<char>(why.size())};
  verdict += why;
  output_ += verdict;
  Append(&output_, Proof(secret_, "acceptor", transcript_ + verdict));
  if (why.empty()) {
    Done();
  } else {
    Fail(why);
  }
}
}  // namespace carousel
