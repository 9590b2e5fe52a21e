#include "launcher/version.h"

#include "launcher/version_generated.h"

namespace carousel {

const char* Version() { return CAROUSEL_VERSION; }

const char* GitRevision() { return CAROUSEL_REVISION; }

std::string VersionLine() {
  return std::string("carousel ") + CAROUSEL_VERSION + ", revision " + CAROUSEL_REVISION + ", " +
         CAROUSEL_COMPILER + ", " + CAROUSEL_BUILD_TYPE;
}
}  // namespace carousel
