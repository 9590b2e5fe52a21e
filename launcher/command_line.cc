#include "launcher/command_line.h"

#include <cstdio>
#include <sstream>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "configs/suggest.h"
#include "core/base/terminal_text.h"
#include "launcher/commands.h"

namespace carousel {
namespace {
constexpr size_t kColumns = 100;
constexpr size_t kNameColumns = 30;  // where descriptions begin

// "  name" padded, then the description wrapped into the rest of the line.
std::string Entry(const std::string& name, const std::string& description) {
  std::string text = absl::StrCat("  ", name);
  const std::string indent(kNameColumns, ' ');
  text += text.size() + 2 > kNameColumns ? "\n" + indent : std::string(kNameColumns - text.size(), ' ');
  bool first_line = true;
  for (const auto& paragraph : absl::StrSplit(description, '\n')) {
    if (!first_line) absl::StrAppend(&text, "\n", indent);
    first_line = false;
    size_t column = kNameColumns;
    for (const auto& word : absl::StrSplit(paragraph, ' ', absl::SkipEmpty())) {
      if (column > kNameColumns && column + 1 + word.size() > kColumns) {
        absl::StrAppend(&text, "\n", indent);
        column = kNameColumns;
      }
      if (column > kNameColumns) {
        text += ' ';
        ++column;
      }
      absl::StrAppend(&text, word);
      column += word.size();
    }
  }
  return text + "\n";
}

// The subcommand that the user had arrived at.
const CLI::App& Deepest(const CLI::App& app) {
  const CLI::App* current = &app;
  while (!current->get_subcommands().empty()) current = current->get_subcommands().front();
  return *current;
}

std::string FullName(const CLI::App& command) {
  const CLI::App* parent = command.get_parent();
  return parent == nullptr ? command.get_name() : absl::StrCat(FullName(*parent), " ", command.get_name());
}

std::vector<std::string> OptionNames(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

std::vector<std::string> SubcommandNames(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::App* sub : command.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(sub->get_name());
  }
  return names;
}
// The option that CLI11's `text` begins with the name of; null if it begins with another word.
const CLI::Option* NamedOption(const CLI::App& command, const std::string& text) {
  const std::string name = text.substr(0, text.find_first_of(": "));
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_name() == name || option->get_name(true) == name) return option;
  }
  return nullptr;
}

// What help calls the value of an option: "DIR"; "bash|zsh" where only these are allowed.
std::string ValueName(const CLI::Option& option) {
  const std::string type = option.get_type_name();  // "DIR", "INT:INT in [1 - 8]", "TEXT:{bash,zsh}"
  const size_t begin = type.find(":{");
  if (begin == std::string::npos || type.back() != '}') return type.substr(0, type.find(':'));
  return absl::StrReplaceAll(type.substr(begin + 2, type.size() - begin - 3), {{",", "|"}});
}

// "0.000000" as people write it; what is no number as it is.
std::string ShortNumber(const std::string& text) {
  double value = 0;
  return absl::StrContains(text, '.') && absl::SimpleAtod(text, &value) ? absl::StrFormat("%.15g", value)
                                                                        : text;
}

// CLI11's words about the value of an option, with what would be right.
std::string OptionProblem(const CLI::App& command, const CLI::ParseError& error) {
  const std::string text = error.what(), kind = error.get_name();
  const CLI::Option* const option = NamedOption(command, text);
  if (kind == "RequiredError" && option != nullptr) {
    const std::string value = ValueName(*option);
    if (!option->get_positional()) {
      return absl::StrCat(option->get_name(), " is missing; write ", option->get_name(), " ", value, ": ",
                          option->get_description());
    }
    return absl::StrCat(option->get_name(true), " is missing: ", option->get_description(),
                        absl::StrContains(value, '|') ? absl::StrCat("; write ", value) : "");
  }
  const std::vector<std::string> range = absl::StrSplit(text, ": Value ");
  const std::vector<std::string> value = absl::StrSplit(range.back(), " not in range ");
  if (range.size() == 2 && value.size() == 2) {
    const std::string type = option == nullptr ? "" : option->get_type_name();
    const std::string is_not = absl::StrCat(range[0], ": \"", value[0], "\" is not a ",
                                            absl::StrContains(type, "INT in [") ? "whole " : "", "number ");
    if (absl::StrContains(type, "POSITIVE")) return absl::StrCat(is_not, "above 0");
    if (absl::StrContains(type, "NONNEGATIVE")) return absl::StrCat(is_not, "of at least 0");
    const std::vector<std::string> ends = absl::StrSplit(value[1], " to ");
    if (ends.size() == 2) {
      return absl::StrCat(is_not, "from ", ShortNumber(ends[0]), " to ", ShortNumber(ends[1]));
    }
  }
  const std::vector<std::string> converted = absl::StrSplit(text, " = ");
  constexpr absl::string_view kCouldNot = "Could not convert: ";
  if (kind == "ConversionError" && converted.size() == 2 && absl::StartsWith(converted[0], kCouldNot)) {
    const std::string name = converted[0].substr(kCouldNot.size());
    const CLI::Option* const flag = NamedOption(command, name);
    if (flag != nullptr && flag->get_items_expected() == 0) return absl::StrCat(name, " takes no value");
    return absl::StrCat(name, ": \"", converted[1], "\" is no number, or too large");
  }
  if (kind == "ArgumentMismatch" && option != nullptr) {
    if (absl::StrContains(text, "At Most 1 required")) {
      return absl::StrCat(option->get_name(), " is given several times; give it once");
    }
    if (absl::StrContains(text, " required ") && absl::EndsWith(text, " missing")) {
      return absl::StrCat(option->get_name(), ": its value is missing; write ", option->get_name(), " ",
                          ValueName(*option));
    }
  }
  if (kind == "ExcludesError") return absl::StrCat(text, "; give one of them");
  if (absl::StrContains(text, ": Directory ")) {
    return absl::StrCat(text, "; give a directory that is there and may be written to");
  }
  return text;
}
}  // namespace

HelpFormatter::HelpFormatter() {
  column_width(kNameColumns);
  label("REQUIRED", "(required)");
}

std::string HelpFormatter::make_option(const CLI::Option* option, bool is_positional) const {
  return Entry(make_option_name(option, is_positional) + make_option_opts(option), make_option_desc(option));
}

std::string HelpFormatter::make_subcommand(const CLI::App* command) const {
  return Entry(command->get_name(), command->get_description());
}

std::string ExplainParseError(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& command = Deepest(app);
  std::string text = absl::StrCat(FullName(command), ": ");
  // Words that nobody took. An unknown subcommand leaves everything behind it, its name first.
  std::vector<std::string> unknown = command.remaining();
  if (unknown.empty()) unknown = app.remaining(true);
  const std::vector<std::string> subcommands = SubcommandNames(command);
  // A bad value of an option says more than what stands behind it.
  const std::string kind = error.get_name();
  const bool is_value = kind == "ValidationError" || kind == "ConversionError" || kind == "ArgumentMismatch";
  if (!unknown.empty() && !is_value) {
    const std::string word = unknown.front().substr(0, unknown.front().find('='));
    if (absl::StartsWith(word, "-")) {
      absl::StrAppend(&text, "no option ", word, DidYouMean(word, OptionNames(command)));
    } else if (!subcommands.empty()) {
      absl::StrAppend(&text, "no command \"", word, "\"", DidYouMean(word, subcommands));
    } else {
      absl::StrAppend(&text, "unexpected argument \"", unknown.front(), "\"; options begin with --");
    }
  } else if (!subcommands.empty() && absl::StrContains(error.what(), "subcommand is required")) {
    absl::StrAppend(&text, "say which: ", absl::StrJoin(subcommands, ", "));
  } else {
    absl::StrAppend(&text, OptionProblem(command, error));
  }
  return EscapeControls(absl::StrCat(text, "\nHelp: ", FullName(command), " --help\n"));
}

CLI::Validator NumberFrom(double min, double max) {
  std::ostringstream description;
  description << "FLOAT in [" << min << " - " << max << "]";
  const std::string range = absl::StrFormat("not a number from %.15g to %.15g", min, max);
  return {[min, max, range](std::string& input) {
            double value = 0;
            const bool inside = absl::SimpleAtod(input, &value) && value >= min && value <= max;  // not NaN
            return inside ? std::string() : absl::StrCat("\"", input, "\" is ", range);
          },
          description.str()};
}

int ReportError(const absl::Status& status) {
  std::fprintf(stderr, "carousel: %s\n", EscapeControls(std::string(status.message())).c_str());
  return ExitCodeOf(status);
}

void AddConfigOptions(CLI::App& command, ConfigOptions* options) {
  command
      .add_option("--config", options->config,
                  "The run as a text file; fields and their defaults: configs/run.proto, examples: "
                  "configs/*.textproto")
      ->type_name("FILE");
  command
      .add_option("--set", options->sets,
                  "Change one field after the file was read, for example --set train.steps=500 or --set "
                  "data.train[0].path=PREFIX; may be given many times; an empty VALUE restores the default")
      ->type_name("FIELD=VALUE")
      ->allow_extra_args(false);
  command
      .add_option("--run_dir", options->run_dir,
                  "Directory of the run: checkpoints, metrics.jsonl and the config as it was resolved")
      ->type_name("DIR");
}
}  // namespace carousel
