// CallSite: the line of our code that made a call. Taken as a last argument with this default it is the
// caller's.
#pragma once
#include <source_location>
#include <string>

namespace carousel {

struct CallSite {
  const char* file = "";
  unsigned line = 0;
  static constexpr CallSite Here(const std::source_location& at = std::source_location::current()) {
    return {.file = at.file_name(), .line = at.line()};
  }
  // "parallel/sharded_sync.cc:120": from the project's folder on, whatever the path of the build was.
  std::string ToString() const;
};
}  // namespace carousel
