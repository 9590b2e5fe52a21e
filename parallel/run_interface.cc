#include "parallel/run_interface.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
// The bytes of an address, the most significant first: 4 or 16.
std::string AddressBytes(const Endpoint& endpoint) {
  if (endpoint.address.ss_family == AF_INET6) {
    const in6_addr& a = reinterpret_cast<const sockaddr_in6*>(&endpoint.address)->sin6_addr;
    return std::string(reinterpret_cast<const char*>(a.s6_addr), 16);
  }
  const in_addr& a = reinterpret_cast<const sockaddr_in*>(&endpoint.address)->sin_addr;
  return std::string(reinterpret_cast<const char*>(&a.s_addr), 4);
}

bool SameNetwork(const Endpoint& a, const Endpoint& b, int prefix_bits) {
  const std::string x = AddressBytes(a), y = AddressBytes(b);
  if (x.size() != y.size()) return false;
  for (int bit = 0; bit < prefix_bits; bit += 8) {
    const int n = std::min(8, prefix_bits - bit);
    const int mask = 0xff & ~(0xff >> n);
    const size_t i = static_cast<size_t>(bit / 8);
    if (((x[i] ^ y[i]) & mask) != 0) return false;
  }
  return true;
}

// "10.0.0.0/8" -> address and bits.
absl::StatusOr<std::pair<Endpoint, int>> ParseNetwork(const std::string& text) {
  const size_t slash = text.find('/');
  int bits = 0;
  if (slash != std::string::npos && absl::SimpleAtoi(text.substr(slash + 1), &bits) && bits >= 0) {
    absl::StatusOr<Endpoint> endpoint = ParseEndpoint(absl::StrCat("[", text.substr(0, slash), "]:1"));
    if (endpoint.ok() && bits <= 8 * static_cast<int>(AddressBytes(*endpoint).size())) {
      endpoint->set_port(0);
      return std::make_pair(*endpoint, bits);
    }
  }
  return absl::InvalidArgumentError(absl::StrCat("'", text.substr(0, 100), "' is no network"));
}

std::string NumberText(const Endpoint& endpoint) {
  char host[NI_MAXHOST] = {};
  if (getnameinfo(reinterpret_cast<const sockaddr*>(&endpoint.address), endpoint.length, host, sizeof host,
                  nullptr, 0, NI_NUMERICHOST) != 0) {
    return "?";
  }
  return host;
}

int PrefixBits(const sockaddr* mask) {
  Endpoint endpoint;
  const socklen_t length = mask->sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  std::memcpy(&endpoint.address, mask, length);
  endpoint.length = length;
  int bits = 0;
  for (const char byte : AddressBytes(endpoint)) bits += __builtin_popcount(static_cast<uint8_t>(byte));
  return bits;
}
}  // namespace

std::string InterfaceAddress::ToString() const {
  return absl::StrCat(interface, " ", NumberText(address), "/", prefix_bits);
}

absl::StatusOr<InterfaceAddress> ParseInterfaceAddress(const std::string& text) {
  const size_t space = text.find(' ');
  if (space == std::string::npos || space == 0 || space > IFNAMSIZ) {
    return absl::InvalidArgumentError(absl::StrCat("'", text.substr(0, 100), "' is no interface"));
  }
  CAROUSEL_ASSIGN_OR_RETURN(const auto network, ParseNetwork(text.substr(space + 1)));
  return InterfaceAddress{
      .interface = text.substr(0, space), .address = network.first, .prefix_bits = network.second};
}

std::vector<InterfaceAddress> OwnInterfaceAddresses() {
  std::vector<InterfaceAddress> addresses;
  ifaddrs* interfaces = nullptr;
  if (getifaddrs(&interfaces) != 0) return addresses;
  for (const ifaddrs* i = interfaces; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || i->ifa_netmask == nullptr || (i->ifa_flags & IFF_UP) == 0) continue;
    if (i->ifa_addr->sa_family != AF_INET && i->ifa_addr->sa_family != AF_INET6) continue;
    InterfaceAddress address{.interface = i->ifa_name};
    address.address.length = i->ifa_addr->sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
    std::memcpy(&address.address.address, i->ifa_addr, address.address.length);
    if (address.address.is_loopback()) continue;
    if (i->ifa_addr->sa_family == AF_INET6 &&
        IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6*>(i->ifa_addr)->sin6_addr)) {
      continue;
    }
    address.address.set_port(0);
    address.prefix_bits = PrefixBits(i->ifa_netmask);
    addresses.push_back(std::move(address));
  }
  freeifaddrs(interfaces);
  return addresses;
}

absl::StatusOr<Endpoint> ChooseAddress(const std::vector<std::vector<InterfaceAddress>>& nodes, size_t node,
                                       const std::string& wanted) {
  const std::vector<InterfaceAddress>& own = nodes[node];
  const std::string known = absl::StrJoin(
      own, ", ", [](std::string* out, const InterfaceAddress& a) { out->append(a.ToString()); });
  std::vector<InterfaceAddress> candidates;
  const std::vector<std::string> words = absl::StrSplit(wanted, ',', absl::SkipWhitespace());
  for (const std::string& word : words) {
    const bool is_network = word.find('/') != std::string::npos;
    std::pair<Endpoint, int> network;
    if (is_network) {
      CAROUSEL_ASSIGN_OR_RETURN(network, ParseNetwork(word));
    }
    if (!candidates.empty()) continue;
    for (const InterfaceAddress& address : own) {
      if (is_network ? SameNetwork(address.address, network.first, network.second)
                     : address.interface == word) {
        candidates.push_back(address);
      }
    }
  }
  if (words.empty()) candidates = own;
  if (candidates.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("no interface is ", words.empty() ? "up" : absl::StrCat("'", wanted, "'"),
                     known.empty() ? "; there are none but loopback" : "; there are " + known));
  }
  const auto rank = [&](const InterfaceAddress& candidate) {
    size_t same = 0, sharing = 0;
    for (size_t other = 0; other < nodes.size(); ++other) {
      if (other == node) continue;
      bool is_same = false, shares = false;
      for (const InterfaceAddress& a : nodes[other]) {
        is_same = is_same || AddressBytes(a.address) == AddressBytes(candidate.address);
        shares = shares || SameNetwork(a.address, candidate.address, candidate.prefix_bits);
      }
      same += is_same;
      sharing += shares;
    }
    // The larger, the better.
    return std::make_tuple(same == 0, sharing, candidate.address.address.ss_family == AF_INET);
  };
  const InterfaceAddress& best = *std::max_element(
      candidates.begin(), candidates.end(), [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
  if (!std::get<0>(rank(best))) {
    return absl::FailedPreconditionError(
        absl::StrCat("other nodes have the same addresses as this one (", known, ")"));
  }
  return best.address;
}
}  // namespace carousel
