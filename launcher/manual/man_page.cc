#include "launcher/manual/man_page.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace carousel {
namespace {

// Text that troff shows as it is. A dot or an apostrophe at the beginning of a line would be a request.
std::string Escaped(absl::string_view text) {
  std::string escaped = absl::StrReplaceAll(text, {{"\\", "\\e"}, {"-", "\\-"}});
  if (absl::StartsWith(escaped, ".") || absl::StartsWith(escaped, "'")) escaped = "\\&" + escaped;
  return escaped;
}

// Lines of text, each as it is.
std::string Verbatim(const std::vector<std::string>& lines) {
  std::string page = ".nf\n";
  for (const std::string& line : lines) absl::StrAppend(&page, Escaped(line), "\n");
  return page + ".fi\n";
}

// A footer of --help: headings end in a colon and begin at the margin; what follows is shown as it is.
std::string Footer(const std::string& footer, absl::string_view heading) {
  std::string page;
  std::vector<std::string> lines;
  const auto flush = [&] {
    while (!lines.empty() && lines.back().empty()) lines.pop_back();
    if (!lines.empty()) page += Verbatim(lines);
    lines.clear();
  };
  for (const absl::string_view line : absl::StrSplit(footer, '\n')) {
    if (absl::EndsWith(line, ":") && !absl::StartsWith(line, " ")) {
      flush();
      absl::StrAppend(&page, heading, " \"", Escaped(line.substr(0, line.size() - 1)), "\"\n");
    } else if (!lines.empty() || !line.empty()) {
      lines.emplace_back(line);
    }
  }
  flush();
  return page;
}

std::string Entry(const OptionOutline& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.names) names.push_back(absl::StrCat("\\fB", Escaped(name), "\\fR"));
  std::string head = absl::StrJoin(names, ", ");
  if (!option.value.empty()) {
    absl::StrAppend(&head, head.empty() ? "" : " ", "\\fI", Escaped(option.value), "\\fR");
  }
  if (!option.choices.empty())
    absl::StrAppend(&head, " (", Escaped(absl::StrJoin(option.choices, ", ")), ")");
  if (option.required) head += ", required";
  std::string page = absl::StrCat(".TP\n", head, "\n");
  // One sentence of help is one paragraph, whatever its line breaks.
  for (const absl::string_view line : absl::StrSplit(option.help, '\n', absl::SkipEmpty())) {
    absl::StrAppend(&page, Escaped(line), "\n");
  }
  return page;
}

std::string Usage(const CommandOutline& command) {
  std::string usage = absl::StrCat("\\fB", Escaped(command.path), "\\fR [\\fIOPTIONS\\fR]");
  for (const OptionOutline& argument : command.arguments) {
    absl::StrAppend(&usage, " \\fI", Escaped(argument.value), "\\fR");
  }
  if (!command.commands.empty() || command.takes_command) usage += " \\fICOMMAND\\fR ...";
  return usage;
}

void AppendCommand(const CommandOutline& command, std::string* page) {
  absl::StrAppend(page, ".SS \"", Escaped(command.path), "\"\n", Escaped(command.help), ".\n.PP\n",
                  Usage(command), "\n");
  for (const OptionOutline& argument : command.arguments) *page += Entry(argument);
  for (const OptionOutline& option : command.options) {
    if (!option.names.empty() && option.names.front() == "-h") continue;
    if (!option.names.empty() && option.names.front() == "--help") continue;
    *page += Entry(option);
  }
  if (!command.footer.empty()) absl::StrAppend(page, ".PP\n", Footer(command.footer, ".PP\n.B"));
  for (const CommandOutline& sub : command.commands) AppendCommand(sub, page);
}
}  // namespace

std::string ManPage(const CommandOutline& program, const std::string& version) {
  const std::string name = program.path;
  const size_t colon = program.help.find(": ");
  const std::string what = colon == std::string::npos ? program.help : program.help.substr(colon + 2);
  std::string page = absl::StrCat(".TH ", absl::AsciiStrToUpper(name), " 1 \"\" \"", Escaped(version),
                                  "\" \"User Commands\"\n", ".SH NAME\n", Escaped(name), " \\- ",
                                  Escaped(what), "\n", ".SH SYNOPSIS\n", Usage(program), "\n.SH OPTIONS\n");
  for (const OptionOutline& option : program.options) page += Entry(option);
  page += ".SH COMMANDS\n";
  for (const CommandOutline& command : program.commands) AppendCommand(command, &page);
  return page + Footer(program.footer, ".SH");
}
}  // namespace carousel
