// An app: reads questions (JSON: bundle, target, key, texts), prints one answer for each.
import java.io.File
import org.json.JSONArray
import org.json.JSONObject
import planish.Bundle
import planish.OnnxModel
import planish.Refused
import planish.Tokenizer

private class Given(private val known: JSONObject) : Tokenizer {
    override fun encode(text: String): LongArray = known.getJSONObject("tokens").getJSONArray(text).let { found ->
        LongArray(found.length()) { found.getLong(it) }
    }

    override fun decode(tokens: LongArray): String =
        tokens.joinToString("") { known.getJSONObject("pieces").getString(it.toString()) }
}

private fun answer(ask: JSONObject, given: JSONObject): Any = try {
    val bundle = Bundle.open(File(ask.getString("bundle")), if (ask.isNull("key")) null else ask.getString("key"))
    val make = { json: String ->
        val read = JSONObject(json)
        check(read.isNull("truncation") && read.isNull("padding")) { "the tokenizer cuts or fills" }
        Given(given)
    }
    val texts = ask.optJSONArray("texts") ?: JSONArray()
    OnnxModel(bundle, ask.getString("target"), make).use { model ->
        JSONArray((0 until texts.length()).map { reply(model, texts.getString(it), ask) })
    }
} catch (problem: Refused) {
    JSONObject().put("refused", problem.message)
}

fun main(args: Array<String>) {
    val given = JSONObject(File(args[0]).readText())
    val questions = given.getJSONArray("questions")
    println(JSONArray((0 until questions.length()).map { answer(questions.getJSONObject(it), given) }))
}
