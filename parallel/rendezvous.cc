#include "parallel/rendezvous.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "parallel/hmac_sha256.h"
#include "parallel/tcp_handshake.h"

namespace carousel {
namespace {
constexpr size_t kMaxFileBytes = 8192;
constexpr char kFirstLine[] = "carousel rendezvous 1\n";

std::string Tag(const std::string& secret, const std::string& text) {
  return Hex(HmacSha256(secret, absl::StrCat("carousel addresses ", text)));
}
absl::Status FileError(const std::string& path) {
  return absl::UnavailableError(absl::StrCat(path, ": ", ErrnoText(errno)));
}
}  // namespace

absl::StatusOr<Rendezvous> ParseRendezvous(const std::string& text) {
  Rendezvous result;
  absl::string_view rest = text;
  if (absl::ConsumePrefix(&rest, "tcp://")) {
    const size_t colon = rest.rfind(':');
    if (colon != absl::string_view::npos && absl::SimpleAtoi(rest.substr(colon + 1), &result.port) &&
        result.port > 0 && result.port < 65536) {
      absl::string_view host = rest.substr(0, colon);
      if (absl::ConsumePrefix(&host, "[") && !absl::ConsumeSuffix(&host, "]")) host = "";
      result.host = std::string(host);
      if (!host.empty()) return result;
    }
  } else if (absl::ConsumePrefix(&rest, "file:")) {
    while (absl::StartsWith(rest, "//")) rest.remove_prefix(1);
    if (absl::StartsWith(rest, "/")) {
      result.directory = std::string(rest);
      return result;
    }
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "'", text,
      "' is no rendezvous; give tcp://HOST:PORT of rank 0, or file:/DIRECTORY that all ranks see"));
}

std::string AddressFile(const std::string& directory) {
  return absl::StrCat(directory, "/carousel-rendezvous");
}

absl::Status WriteAddresses(const std::string& directory, const std::string& secret,
                            const std::vector<Endpoint>& addresses) {
  if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return absl::UnavailableError(
        absl::StrCat("cannot make ", directory, ": ", ErrnoText(errno),
                     "; the rendezvous (CAROUSEL_RENDEZVOUS) takes a directory that "
                     "all ranks see and may write to"));
  }
  std::string text = kFirstLine;
  for (const Endpoint& endpoint : addresses) {
    if (text.size() < kMaxFileBytes - 256) absl::StrAppend(&text, endpoint.ToString(), "\n");
  }
  text += Tag(secret, text) + "\n";
  const Nonce nonce = RandomNonce();
  const std::string name = AddressFile(directory);
  const std::string temporary =
      absl::StrCat(name, ".", Hex(Sha256(std::string(nonce.begin(), nonce.end()))).substr(0, 16));
  const Socket file(open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.is_open()) return FileError(temporary);
  const bool written = write(file.fd(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
                       fsync(file.fd()) == 0 && rename(temporary.c_str(), name.c_str()) == 0;
  if (written) return absl::OkStatus();
  const absl::Status status = FileError(name);
  unlink(temporary.c_str());
  return status;
}

absl::StatusOr<std::vector<Endpoint>> ReadAddresses(const std::string& directory, const std::string& secret) {
  const std::string name = AddressFile(directory);
  // Not to be kept waiting by a pipe that somebody put there.
  const Socket file(open(name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file.is_open()) return FileError(name);
  struct stat info {};
  if (fstat(file.fd(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::UnavailableError(absl::StrCat(name, ": not a file"));
  }
  std::string text(kMaxFileBytes, '\0');
  const ssize_t n = read(file.fd(), text.data(), text.size());
  if (n < 0) return FileError(name);
  text.resize(static_cast<size_t>(n));
  const absl::Status foreign =
      absl::UnavailableError(absl::StrCat(name, ": written by another run, or with another secret"));
  constexpr size_t kTagLineBytes = 65;
  if (text.size() < kTagLineBytes || text.back() != '\n') return foreign;
  const std::string body = text.substr(0, text.size() - kTagLineBytes);
  if (!absl::StartsWith(body, kFirstLine) || Tag(secret, body) + "\n" != text.substr(body.size())) {
    return foreign;
  }
  std::vector<Endpoint> endpoints;
  for (const absl::string_view line :
       absl::StrSplit(body.substr(sizeof kFirstLine - 1), '\n', absl::SkipEmpty())) {
    absl::StatusOr<Endpoint> endpoint = ParseEndpoint(std::string(line));
    if (!endpoint.ok()) return endpoint.status();
    endpoints.push_back(*endpoint);
  }
  return endpoints;
}
}  // namespace carousel
