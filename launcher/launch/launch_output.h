// What passes from ranks to the console. Pure: text in, text out.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace carousel {

// Cuts a stream into lines. A line longer than 8 KiB is cut into pieces.
class LineCutter {
 public:
  // The lines that are complete now, without their ends; carriage returns before the end are dropped.
  std::vector<std::string> Add(const std::string& text);
  // What has come since, at the end of the stream; empty if nothing.
  std::string Rest();

 private:
  std::string open_;
};

// Whether a line that a rank printed to stderr reports an error: not one of our own log lines of a lower
// level ("[12:30:59 I] ..."), not empty.
bool IsErrorLine(const std::string& line);
// "[node7 rank 3] line"; our own log line keeps its time in front and loses the rank that it says itself.
std::string PrefixedLine(const std::string& line, const std::string& host, int64_t rank);

// Takes mpirun's remarks out of what it prints: paragraphs between two rows of dashes, about the end of the
// job, which tell less than the records of the ranks and would stand below them; and a line for each signal
// that it passes on, of which a stop needs many.
class BannerFilter {
 public:
  // What goes to the console of `text`.
  std::string Pass(const std::string& text);
  // A paragraph that never ended.
  std::string Rest();

 private:
  std::string line_, paragraph_;
  bool inside_ = false, line_passed_ = false;
};

// The last lines of a log, at most so many, without blank ones at the end.
std::string LastLines(const std::string& text, size_t count);
}  // namespace carousel
