// An app: reads questions (JSON: bundle, target, key, texts), prints one answer for each.
using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Text.Json;
using Planish;

sealed class Given : ITokenizer
{
    private readonly JsonElement known;

    public Given(JsonElement known) { this.known = known; }

    public long[] Encode(string text)
    {
        return known.GetProperty("tokens").GetProperty(text).EnumerateArray().Select(token => token.GetInt64()).ToArray();
    }

    public string Decode(IReadOnlyList<long> tokens)
    {
        return string.Concat(tokens.Select(token => known.GetProperty("pieces").GetProperty(token.ToString()).GetString()));
    }
}

static class App
{
    static object Answer(JsonElement ask, JsonElement given)
    {
        try
        {
            Bundle bundle = Bundle.Open(ask.GetProperty("bundle").GetString(), ask.GetProperty("key").GetString());
            Func<string, ITokenizer> make = json =>
            {
                JsonElement read = JsonDocument.Parse(json).RootElement;
                if (read.GetProperty("truncation").ValueKind != JsonValueKind.Null || read.GetProperty("padding").ValueKind != JsonValueKind.Null)
                    throw new Exception("the tokenizer cuts or fills");
                return new Given(given);
            };
            using (var model = new OnnxModel(bundle, ask.GetProperty("target").GetString(), make))
            {
                var made = new List<object>();
                if (ask.TryGetProperty("texts", out JsonElement texts))
                    foreach (JsonElement text in texts.EnumerateArray()) made.Add(Reply(model, text.GetString(), ask));
                return made;
            }
        }
        catch (RefusedException problem)
        {
            return new Dictionary<string, string> { ["refused"] = problem.Message };
        }
    }

    static object Reply(OnnxModel model, string text, JsonElement ask)
    {
#if WRITES
        return model.Generate(text, ask.GetProperty("count").GetInt32(), ask.GetProperty("chat").GetBoolean());
#else
        return model.Embed(text);
#endif
    }

    static void Main(string[] arguments)
    {
        JsonElement given = JsonDocument.Parse(File.ReadAllBytes(arguments[0])).RootElement;
        var answers = given.GetProperty("questions").EnumerateArray().Select(ask => Answer(ask, given)).ToList();
        File.WriteAllBytes(arguments[1], JsonSerializer.SerializeToUtf8Bytes(answers));
    }
}
