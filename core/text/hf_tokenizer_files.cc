#include "core/text/hf_tokenizer_files.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "core/text/tokenizer.h"

namespace carousel {
namespace {
using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr const char* kEodText = "<|endoftext|>";
constexpr const char* kPadText = "<|pad|>";

// Bytes that stand for themselves in GPT-2's table; the others are 256 + their rank among the others.
bool StandsForItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

OrderedJson AddedToken(int32_t id, const char* text, bool with_id) {
  OrderedJson token;
  if (with_id) token["id"] = id;
  token["content"] = text;
  token["single_word"] = false;
  token["lstrip"] = false;
  token["rstrip"] = false;
  token["normalized"] = false;
  token["special"] = true;
  return token;
}

OrderedJson ByteLevel() {
  OrderedJson component;
  component["type"] = "ByteLevel";
  component["add_prefix_space"] = false;
  component["trim_offsets"] = false;
  component["use_regex"] = false;
  return component;
}

OrderedJson TemplateSpecial(const char* text, int type_id) {
  OrderedJson special;
  special["SpecialToken"]["id"] = text;
  special["SpecialToken"]["type_id"] = type_id;
  return special;
}
OrderedJson TemplateSequence(const char* id, int type_id) {
  OrderedJson sequence;
  sequence["Sequence"]["id"] = id;
  sequence["Sequence"]["type_id"] = type_id;
  return sequence;
}

// <eod> text, or <eod> text <eod> text: every text starts as a document does in training.
OrderedJson PostProcessor() {
  OrderedJson processor;
  processor["type"] = "TemplateProcessing";
  processor["single"] = {TemplateSpecial(kEodText, 0), TemplateSequence("A", 0)};
  processor["pair"] = {TemplateSpecial(kEodText, 0), TemplateSequence("A", 0), TemplateSpecial(kEodText, 1),
                       TemplateSequence("B", 1)};
  OrderedJson& special = processor["special_tokens"][kEodText];
  special["id"] = kEodText;
  special["ids"] = {ByteTokenizer::kEod};
  special["tokens"] = {kEodText};
  return processor;
}

OrderedJson Model() {
  OrderedJson model;
  model["type"] = "BPE";
  model["dropout"] = nullptr;
  model["unk_token"] = nullptr;
  model["continuing_subword_prefix"] = nullptr;
  model["end_of_word_suffix"] = nullptr;
  model["fuse_unk"] = false;
  model["byte_fallback"] = false;
  model["ignore_merges"] = false;
  OrderedJson& vocab = model["vocab"];
  for (int byte = 0; byte < 256; ++byte) vocab[ByteCharacter(byte)] = byte;
  model["merges"] = OrderedJson::array();
  return model;
}

std::string TokenizerJson() {
  OrderedJson tokenizer;
  tokenizer["version"] = "1.0";
  tokenizer["truncation"] = nullptr;
  tokenizer["padding"] = nullptr;
  tokenizer["added_tokens"] = {AddedToken(ByteTokenizer::kEod, kEodText, true),
                               AddedToken(ByteTokenizer::kPad, kPadText, true)};
  tokenizer["normalizer"] = nullptr;
  tokenizer["pre_tokenizer"] = ByteLevel();
  tokenizer["post_processor"] = PostProcessor();
  tokenizer["decoder"] = ByteLevel();
  tokenizer["model"] = Model();
  return tokenizer.dump(1) + "\n";
}

std::string TokenizerConfigJson() {
  OrderedJson config;
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["bos_token"] = kEodText;
  config["eos_token"] = kEodText;
  config["pad_token"] = kPadText;
  config["clean_up_tokenization_spaces"] = false;  // it would change the text when decoding
  config["split_special_tokens"] = true;           // text never yields special ids
  config["model_input_names"] = {"input_ids"};     // the model has no attention mask
  OrderedJson& added = config["added_tokens_decoder"];
  added[absl::StrCat(ByteTokenizer::kEod)] = AddedToken(ByteTokenizer::kEod, kEodText, false);
  added[absl::StrCat(ByteTokenizer::kPad)] = AddedToken(ByteTokenizer::kPad, kPadText, false);
  return config.dump(2) + "\n";
}

std::string SpecialTokensMapJson() {
  OrderedJson map;
  map["bos_token"] = kEodText;
  map["eos_token"] = kEodText;
  map["pad_token"] = kPadText;
  return map.dump(2) + "\n";
}

absl::Status NotBytes(const std::string& what) {
  return absl::FailedPreconditionError(
      absl::StrCat("not the byte tokenizer, the only one of this version: ", what));
}

// object[name], null if there is none.
const Json& Member(const Json& object, const char* name) {
  static const Json& null = *new Json();
  if (!object.is_object()) return null;
  const auto found = object.find(name);
  return found == object.end() ? null : *found;
}
}  // namespace

std::string ByteCharacter(int byte) {
  int code_point = byte;
  if (!StandsForItself(byte)) {
    code_point = 256;
    for (int b = 0; b < byte; ++b) code_point += !StandsForItself(b);
  }
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | (code_point >> 6)), static_cast<char>(0x80 | (code_point & 0x3F))};
}

std::vector<std::pair<std::string, std::string>> ByteTokenizerFiles() {
  return {{"tokenizer.json", TokenizerJson()},
          {"tokenizer_config.json", TokenizerConfigJson()},
          {"special_tokens_map.json", SpecialTokensMapJson()}};
}

absl::Status CheckIsByteTokenizer(const std::string& tokenizer_json) {
  const Json tokenizer = Json::parse(tokenizer_json, nullptr, /*allow_exceptions=*/false);
  if (!tokenizer.is_object()) return absl::InvalidArgumentError("not a JSON object");
  const Json& model = Member(tokenizer, "model");
  if (Member(model, "type") != "BPE") return NotBytes("model.type is not \"BPE\"");
  const Json& merges = Member(model, "merges");
  if (!merges.is_array() || !merges.empty()) return NotBytes("model.merges is not empty");
  if (!Member(tokenizer, "normalizer").is_null()) return NotBytes("it has a normalizer");
  const Json& pre_tokenizer = Member(tokenizer, "pre_tokenizer");
  if (Member(pre_tokenizer, "type") != "ByteLevel" || Member(pre_tokenizer, "add_prefix_space") == true) {
    return NotBytes("pre_tokenizer is not ByteLevel without a prefix space");
  }
  const Json& vocab = Member(model, "vocab");
  for (int byte = 0; byte < 256; ++byte) {
    if (Member(vocab, ByteCharacter(byte).c_str()) != byte) {
      return NotBytes(absl::StrCat("model.vocab does not give byte ", byte, " the id ", byte));
    }
  }
  const Json& added = Member(tokenizer, "added_tokens");
  if (added.is_array()) {
    for (const Json& token : added) {
      if (Member(token, "id") == ByteTokenizer::kEod && Member(token, "special") == true) {
        return absl::OkStatus();
      }
    }
  }
  return NotBytes(absl::StrCat("no special token has the id ", ByteTokenizer::kEod));
}
}  // namespace carousel
