// How the command line looks and what it says when it is wrong.
#pragma once
#include <CLI/App.hpp>
#include <CLI/Formatter.hpp>
#include <CLI/Validators.hpp>
#include <string>

namespace carousel {

// Help with descriptions wrapped at 100 columns and aligned. Line breaks in a description are kept. Give it
// to the top-level app before subcommands are added; they inherit it.
class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter();
  std::string make_option(const CLI::Option* option, bool is_positional) const override;
  std::string make_subcommand(const CLI::App* command) const override;
};

// "carousel train: no option --confg; did you mean --config?" and how to get help. `app` is the top-level app
// that threw `error` from its parse.
std::string ExplainParseError(const CLI::App& app, const CLI::ParseError& error);

// For an option: a number from min to max, both included, and not NaN.
CLI::Validator NumberFrom(double min, double max);
}  // namespace carousel
