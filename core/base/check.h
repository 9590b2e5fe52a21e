// Checks for mistakes of the programmer (wrong shape, wrong dtype, use before Bind). Always on; print place
// and values, then abort. What a user or the environment can cause is reported through absl::Status instead.
#pragma once
#include <cstdint>
#include <sstream>
#include <string>

namespace carousel {

// Prints "file:line: message" to stderr with the rank and the step (if they were set) and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const std::string& message);

// The rank that CheckFailed and the log print; -1 (the default) prints none.
void SetProcessRank(int rank);
int ProcessRank();
// The training step in progress, counted from 1, for messages about what fails in it; -1 (the default): none.
void SetProcessStep(int64_t step);
int64_t ProcessStep();

namespace internal {
template <class A, class B>
std::string FormatComparison(const char* text, const A& a, const B& b) {
  std::ostringstream out;
  out << "CHECK failed: " << text << " (" << a << " vs " << b << ")";
  return out.str();
}
}  // namespace internal
}  // namespace carousel

#define CAROUSEL_CHECK(condition)                                                               \
  do {                                                                                          \
    if (!(condition)) ::carousel::CheckFailed(__FILE__, __LINE__, "CHECK failed: " #condition); \
  } while (0)
// With a message: anything a std::string can be made from.
#define CAROUSEL_CHECK_MSG(condition, message)                                            \
  do {                                                                                    \
    if (!(condition))                                                                     \
      ::carousel::CheckFailed(__FILE__, __LINE__,                                         \
                              std::string("CHECK failed: " #condition ": ") + (message)); \
  } while (0)
#define CAROUSEL_CHECK_OP_(a, b, op)                                                      \
  do {                                                                                    \
    const auto check_a_ = (a);                                                            \
    const auto check_b_ = (b);                                                            \
    if (!(check_a_ op check_b_))                                                          \
      ::carousel::CheckFailed(                                                            \
          __FILE__, __LINE__,                                                             \
          ::carousel::internal::FormatComparison(#a " " #op " " #b, check_a_, check_b_)); \
  } while (0)
#define CAROUSEL_CHECK_EQ(a, b) CAROUSEL_CHECK_OP_(a, b, ==)
#define CAROUSEL_CHECK_NE(a, b) CAROUSEL_CHECK_OP_(a, b, !=)
#define CAROUSEL_CHECK_LE(a, b) CAROUSEL_CHECK_OP_(a, b, <=)
#define CAROUSEL_CHECK_LT(a, b) CAROUSEL_CHECK_OP_(a, b, <)
#define CAROUSEL_CHECK_GE(a, b) CAROUSEL_CHECK_OP_(a, b, >=)
#define CAROUSEL_CHECK_GT(a, b) CAROUSEL_CHECK_OP_(a, b, >)
#ifdef NDEBUG
#define CAROUSEL_DCHECK(condition) \
  do {                             \
  } while (0)
#else
#define CAROUSEL_DCHECK(condition) CAROUSEL_CHECK(condition)
#endif
