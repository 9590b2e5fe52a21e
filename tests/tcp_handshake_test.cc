// The handshake as bytes: cut, changed, repeated, mirrored, and at random.
#include "parallel/tcp_handshake.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>

namespace carousel {
namespace {
using State = Handshake::State;

constexpr char kTestSecret[] = "a secret for tests only";
constexpr Introduction kCaller = {.world_size = 4, .from = 3, .to = 1, .group = 77};
AcceptorHandshake::Judge Welcome() {
  return [](const Introduction&) { return std::string(); };
}
Nonce Count(uint8_t first) {
  Nonce nonce;
  for (uint8_t& byte : nonce) byte = first++;
  return nonce;
}

// Carries bytes both ways, `step` at a time, until neither end has more to say.
void Converse(Handshake& a, Handshake& b, size_t step) {
  std::string to_b = a.TakeOutput(), to_a;
  while (!to_a.empty() || !to_b.empty()) {
    for (auto [text, end] : {std::pair{&to_b, &b}, std::pair{&to_a, &a}}) {
      const size_t taken = end->Feed(std::string_view(*text).substr(0, step));
      text->erase(0, std::max<size_t>(taken, end->wanted() == 0 ? text->size() : 0));
    }
    to_a += b.TakeOutput();
    to_b += a.TakeOutput();
  }
}

TEST(TcpHandshake, EndsWithBothSureHoweverTheBytesAreCut) {
  for (size_t step = 1; step < 100; ++step) {
    ConnectorHandshake connector(kTestSecret, kCaller, Count(1));
    AcceptorHandshake acceptor(kTestSecret, Count(50), Welcome());
    Converse(connector, acceptor, step);
    EXPECT_EQ(connector.state(), State::kDone) << connector.error();
    EXPECT_EQ(acceptor.state(), State::kDone) << acceptor.error();
    EXPECT_EQ(acceptor.introduction().from, kCaller.from);
    EXPECT_EQ(acceptor.introduction().to, kCaller.to);
    EXPECT_EQ(acceptor.introduction().group, kCaller.group);
    EXPECT_EQ(acceptor.introduction().world_size, kCaller.world_size);
  }
}

TEST(TcpHandshake, TakesNoByteOfWhatFollows) {
  ConnectorHandshake connector(kTestSecret, kCaller, Count(1));
  AcceptorHandshake acceptor(kTestSecret, Count(50), Welcome());
  acceptor.Feed(connector.TakeOutput());
  connector.Feed(acceptor.TakeOutput());
  const std::string proof = connector.TakeOutput();
  EXPECT_EQ(acceptor.Feed(proof + "data"), proof.size());
  const std::string verdict = acceptor.TakeOutput();
  EXPECT_EQ(connector.Feed(verdict + "data"), verdict.size());
  EXPECT_EQ(connector.wanted(), 0u);
}

TEST(TcpHandshake, AStrangerLearnsNothingAndIsNotBelieved) {
  ConnectorHandshake connector("another secret, as long", kCaller, Count(1));
  AcceptorHandshake acceptor(kTestSecret, Count(50), Welcome());
  Converse(connector, acceptor, 1000);
  EXPECT_EQ(acceptor.state(), State::kFailed);
  EXPECT_EQ(connector.state(), State::kGoesOn);  // sees only the end of the connection
  EXPECT_TRUE(connector.proved());

  // An acceptor that does not know the secret is found out by its own proof.
  ConnectorHandshake honest(kTestSecret, kCaller, Count(1));
  honest.Feed(std::string(16, 'n'));
  honest.Feed(std::string(2, '\0') + std::string(kProofBytes, 'p'));
  EXPECT_EQ(honest.state(), State::kFailed);
  EXPECT_FALSE(honest.refused());
}

TEST(TcpHandshake, AProofDoesNotWorkTwiceNorBackwards) {
  ConnectorHandshake connector(kTestSecret, kCaller, Count(1));
  AcceptorHandshake acceptor(kTestSecret, Count(50), Welcome());
  const std::string hello = connector.TakeOutput();
  acceptor.Feed(hello);
  const std::string challenge = acceptor.TakeOutput();
  connector.Feed(challenge);
  const std::string proof = connector.TakeOutput();
  acceptor.Feed(proof);
  const std::string verdict = acceptor.TakeOutput();
  ASSERT_EQ(acceptor.state(), State::kDone);
  // Recorded and played again: the other's random number is another one.
  AcceptorHandshake next(kTestSecret, Count(51), Welcome());
  next.Feed(hello);
  next.Feed(proof);
  EXPECT_EQ(next.state(), State::kFailed);
  // Sent back to where it came from.
  ConnectorHandshake mirrored(kTestSecret, kCaller, Count(1));
  mirrored.Feed(challenge);
  mirrored.Feed(std::string(2, '\0') + proof);
  EXPECT_EQ(mirrored.state(), State::kFailed);
}

TEST(TcpHandshake, ARefusalIsSaidToThoseWhoKnowTheSecret) {
  ConnectorHandshake connector(kTestSecret, kCaller, Count(1));
  AcceptorHandshake acceptor(kTestSecret, Count(50),
                             [](const Introduction&) { return std::string(1000, 'x'); });
  Converse(connector, acceptor, 7);
  EXPECT_EQ(connector.state(), State::kFailed);
  EXPECT_TRUE(connector.refused());
  EXPECT_EQ(connector.error(), std::string(kMaxVerdictText, 'x'));
}

TEST(TcpHandshake, EveryChangedBitIsNoticed) {
  // Of all that crosses the wire in both directions, one bit at a time.
  for (size_t bit = 0;; ++bit) {
    ConnectorHandshake connector(kTestSecret, kCaller, Count(1));
    AcceptorHandshake acceptor(kTestSecret, Count(50), Welcome());
    size_t begin = 0;
    bool changed = false;
    const auto carry = [&](Handshake& from, Handshake& to) {
      std::string text = from.TakeOutput();
      if (bit / 8 >= begin && bit / 8 < begin + text.size()) {
        text[bit / 8 - begin] = static_cast<char>(text[bit / 8 - begin] ^ (1 << (bit % 8)));
        changed = true;
      }
      begin += text.size();
      to.Feed(text);
    };
    carry(connector, acceptor);
    carry(acceptor, connector);
    carry(connector, acceptor);
    carry(acceptor, connector);
    if (!changed) break;
    EXPECT_FALSE(connector.state() == State::kDone && acceptor.state() == State::kDone) << "bit " << bit;
  }
}

TEST(TcpHandshake, SurvivesAnyBytes) {
  std::mt19937_64 random(7);
  ConnectorHandshake speaker(kTestSecret, kCaller, Count(1));
  const std::string hello = speaker.TakeOutput();
  for (int round = 0; round < 20000; ++round) {
    std::string bytes(random() % 300, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    if (round % 2 == 0) bytes = hello.substr(0, random() % (hello.size() + 1)) + bytes;
    AcceptorHandshake acceptor(kTestSecret, Count(50), Welcome());
    ConnectorHandshake connector(kTestSecret, kCaller, Count(1));
    for (Handshake* end : {static_cast<Handshake*>(&acceptor), static_cast<Handshake*>(&connector)}) {
      std::string_view rest = bytes;
      while (!rest.empty() && end->wanted() > 0) {
        rest.remove_prefix(end->Feed(rest.substr(0, 1 + random() % 64)));
      }
      EXPECT_NE(end->state(), State::kDone);
      EXPECT_LE(end->TakeOutput().size(), 128u);
    }
  }
}

}  // namespace
}  // namespace carousel
