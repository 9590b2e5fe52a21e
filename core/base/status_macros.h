// Early return on absl::Status. The only header of core/base that includes Abseil: never include it from
// tensor.h or ops.h.
#pragma once
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define CAROUSEL_RETURN_IF_ERROR(expression)   \
  do {                                         \
    const absl::Status status_ = (expression); \
    if (!status_.ok()) return status_;         \
  } while (0)

#define CAROUSEL_CONCAT_INNER_(a, b) a##b
#define CAROUSEL_CONCAT_(a, b) CAROUSEL_CONCAT_INNER_(a, b)
#define CAROUSEL_ASSIGN_OR_RETURN(declaration, expression) \
  CAROUSEL_ASSIGN_OR_RETURN_(CAROUSEL_CONCAT_(status_or_, __LINE__), declaration, expression)
#define CAROUSEL_ASSIGN_OR_RETURN_(temporary, declaration, expression) \
  auto temporary = (expression);                                       \
  if (!temporary.ok()) return temporary.status();                      \
  declaration = std::move(temporary).value()
