// An app: reads questions (JSON: bundle, target, key, texts), prints one answer for each.
// Tokens come from the file, too: the app's tokenizer is not what is tested here.
#include <iostream>

#ifdef EXECUTORCH
#include "planish/executorch.hpp"
using Model = planish::ExecutorchModel;
#else
#include "planish/onnxruntime.hpp"
using Model = planish::OnnxModel;
#endif

using nlohmann::json;

// Tokens of texts from the file; a token's text is what the file says, and bytes become characters when all are there.
struct Given : planish::Tokenizer {
  explicit Given(json given) : known(std::move(given)) {}
  std::vector<std::int64_t> encode(const std::string& text) override {
    return known.at("tokens").at(text).get<std::vector<std::int64_t>>();
  }
  std::string decode(const std::vector<std::int64_t>& tokens) override {
    std::string text;
    for (const std::int64_t token : tokens) text += known.at("pieces").at(std::to_string(token)).get<std::string>();
    return text;
  }
  json known;
};

json answer(const json& ask, const json& given) try {
  std::optional<std::string> key;
  if (!ask["key"].is_null()) key = ask["key"].get<std::string>();
  const planish::Bundle bundle(ask["bundle"].get<std::string>(), key);
  Model model(bundle, ask["target"].get<std::string>(), [&](const std::string& file) {
    const json read = json::parse(file);
    if (!read["truncation"].is_null() || !read["padding"].is_null()) throw std::logic_error("the tokenizer cuts or fills");
    return std::make_unique<Given>(given);
  });
  json made = json::array();
  for (const json& text : ask.value("texts", json::array())) {
#ifdef WRITES
    made.push_back(model.generate(text.get<std::string>(), ask["count"].get<std::size_t>(), ask["chat"].get<bool>()));
#else
    made.push_back(model.embed(text.get<std::string>()));
#endif
  }
  return made;
} catch (const planish::Refused& problem) {
  return { {"refused", problem.what()} };
}

int main(int, char** argv) {
  const json given = json::parse(planish::detail::slurp(argv[1]));
  json answers = json::array();
  for (const json& ask : given["questions"]) answers.push_back(answer(ask, given));
  std::cout << answers.dump();
}
