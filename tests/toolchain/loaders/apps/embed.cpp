// An app: reads questions (JSON: bundle, target, key, texts), prints one answer for each.
// Tokens come from the file, too: the app's tokenizer is not what is tested here.
#include <iostream>

#include "planish/onnxruntime.hpp"

using nlohmann::json;

struct Given : planish::Tokenizer {
  explicit Given(json tokens) : known(std::move(tokens)) {}
  std::vector<std::int64_t> encode(const std::string& text) override { return known.at(text).get<std::vector<std::int64_t>>(); }
  std::string decode(const std::vector<std::int64_t>&) override { return ""; }
  json known;
};

json answer(const json& ask, const json& tokens) try {
  std::optional<std::string> key;
  if (!ask["key"].is_null()) key = ask["key"].get<std::string>();
  const planish::Bundle bundle(ask["bundle"].get<std::string>(), key);
  planish::OnnxModel model(bundle, ask["target"].get<std::string>(), [&](const std::string& file) {
    const json read = json::parse(file);
    if (!read["truncation"].is_null() || !read["padding"].is_null()) throw std::logic_error("the tokenizer cuts or fills");
    return std::make_unique<Given>(tokens);
  });
  json made = json::array();
  for (const json& text : ask.value("texts", json::array())) made.push_back(model.embed(text.get<std::string>()));
  return made;
} catch (const planish::Refused& problem) {
  return { {"refused", problem.what()} };
}

int main(int, char** argv) {
  const json given = json::parse(planish::detail::slurp(argv[1]));
  json answers = json::array();
  for (const json& ask : given["questions"]) answers.push_back(answer(ask, given["tokens"]));
  std::cout << answers.dump();
}
