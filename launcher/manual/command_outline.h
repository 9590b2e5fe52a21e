// What a command line offers, as plain data: the source of the manual page and of the completion scripts, so
// that neither can differ from --help.
#pragma once
#include <CLI/App.hpp>
#include <string>
#include <vector>

namespace carousel {

struct OptionOutline {
  std::vector<std::string> names;    // "--config", "-h"; empty for a positional argument
  std::string value;                 // "FILE", what the value is called; empty for a flag
  std::vector<std::string> choices;  // the only values there are, if they are few
  std::string help;
  bool required = false;
};

struct CommandOutline {
  std::string path;  // "carousel checkpoint diff"
  std::string help, footer;
  std::vector<OptionOutline> options, arguments;
  std::vector<CommandOutline> commands;
  bool takes_command = false;  // what follows its options is another command of the program
};

// Of `app` and everything below it, in the order of --help. Hidden options (an empty group) are left out.
CommandOutline OutlineOf(const CLI::App& app);
}  // namespace carousel
