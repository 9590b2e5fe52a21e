// How two ranks that meet on a TCP connection make sure of each other before anything else is read: both
// prove that they know the secret of the run by keyed hashes of two fresh random numbers. No input or output
// here: bytes go in, bytes come out, so that every sequence of bytes can be tested. No message is longer than
// the constants below, whatever the other end sends.
//
//   connector -> acceptor   hello: magic, introduction, random number        44 bytes
//   acceptor -> connector   random number                                    16
//   connector -> acceptor   proof over hello and both numbers                32
//   acceptor -> connector   verdict (0: welcome), its text, proof over all   34 + text
//
// Who does not know the secret is sent 16 random bytes and nothing else. The secret should be random itself
// (32 hex digits or more): who listens on the wire could try to guess a short one. What follows on the
// connection is neither encrypted nor signed.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace carousel {

using Nonce = std::array<uint8_t, 16>;
Nonce RandomNonce();  // from the kernel's random numbers

// Who calls whom, and what for.
struct Introduction {
  uint32_t world_size = 0;
  uint32_t from = 0, to = 0;  // ranks of the world
  uint64_t group = 0;         // of ranks, whose messages the connection will carry
};

constexpr size_t kHelloBytes = 8 + 4 + 4 + 4 + 8 + 16, kProofBytes = 32, kMaxVerdictText = 200;

class Handshake {
 public:
  enum class State : uint8_t { kGoesOn, kDone, kFailed };
  virtual ~Handshake() = default;
  State state() const { return state_; }
  const std::string& error() const { return error_; }  // of kFailed
  // How many bytes are needed next; 0 when the handshake has ended. To read more could take what follows it.
  size_t wanted() const { return state_ == State::kGoesOn ? PartBytes() - input_.size() : 0; }
  // Takes what came, at most what is wanted until the end; returns how much it took.
  size_t Feed(std::string_view bytes);
  // What is to be sent now, also after the end.
  std::string TakeOutput();

 protected:
  virtual size_t PartBytes() const = 0;  // of the part that `input_` begins with
  virtual void Look() {}                 // at an incomplete part
  virtual void Advance() = 0;            // `input_` holds a part
  void Fail(const std::string& why);
  void Done() { state_ = State::kDone; }

  std::string input_, output_;

 private:
  std::string error_;
  State state_ = State::kGoesOn;
};

class ConnectorHandshake final : public Handshake {
 public:
  ConnectorHandshake(const std::string& secret, const Introduction& introduction, const Nonce& nonce);
  // True if it failed because the other end, who knows the secret, said no: trying again is no use.
  bool refused() const { return refused_; }
  // True if the proof has been given: an end of the connection then means that it was not believed.
  bool proved() const { return proved_; }

 private:
  size_t PartBytes() const override;
  void Look() override;
  void Advance() override;

  std::string secret_, transcript_;
  bool proved_ = false, refused_ = false;
};

class AcceptorHandshake final : public Handshake {
 public:
  // `judge` is asked about a caller that has proved itself: empty means welcome, else why not (shown to the
  // caller).
  using Judge = std::function<std::string(const Introduction&)>;
  AcceptorHandshake(const std::string& secret, const Nonce& nonce, Judge judge);
  const Introduction& introduction() const { return introduction_; }  // of kDone

 private:
  size_t PartBytes() const override { return greeted_ ? kProofBytes : kHelloBytes; }
  void Look() override;
  void Advance() override;

  std::string secret_, transcript_;
  Nonce nonce_;
  Judge judge_;
  Introduction introduction_;
  bool greeted_ = false;
};
}  // namespace carousel
