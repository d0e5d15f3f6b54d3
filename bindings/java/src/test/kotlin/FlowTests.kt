package ai.solrt

import java.util.concurrent.CountDownLatch
import kotlin.concurrent.thread
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.map
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking

/** Tests of the flow on the golden bundle; ../test.sh sets the variables SOL_TEST_.... */
fun main() {
    SolRuntime.open(System.getenv("SOL_TEST_ORT")).use { runtime ->
        SolModel.load(runtime, System.getenv("SOL_TEST_BUNDLE")).use { model -> tests(model) }
    }
}

private fun tests(model: SolModel) {
    val cases = GoldenCase.read(System.getenv("SOL_TEST_CASES"), model.info().nativeOperators)
    val prompt = cases[0].prompt
    val dense = SolTests.options(40)
    fun alone(): List<Int> = model.newSession().use { s -> runBlocking { s.generateFlow(prompt, dense).map { it.token }.toList() } }
    var passed = 0
    fun test(name: String, body: suspend CoroutineScope.(SolSession) -> Unit) {
        try {
            model.newSession().use { session -> runBlocking { body(session) } }
        } catch (problem: Throwable) {
            println("FAILED $name")
            throw problem
        }
        passed++
    }

    for (golden in cases) test("golden: ${golden.name}") { session ->
        val tokens = ArrayList<SolToken>()
        session.generateFlow(golden.prompt, golden.options).collect {
            tokens += it
            golden.budgetAt[tokens.size]?.let { budget -> session.setBudget(budget) }
        }
        SolTests.equal(golden.tokens.toList(), tokens.map { it.token })
        SolTests.equal(golden.actions.toList(), tokens.drop(1).map { it.action })
        SolTests.equal(golden.text, tokens.joinToString("") { it.text })
    }
    test("take ends the generation") { session ->
        SolTests.equal(alone().take(3), session.generateFlow(prompt, dense).map { it.token }.take(3).toList())
        SolTests.check(!session.isBusy, "it is over")
        SolTests.equal(alone(), session.generateFlow(prompt, dense).map { it.token }.toList())
    }
    test("a cancelled collector") { session ->
        repeat(20) {
            val first = CompletableDeferred<Unit>()
            val job = launch(Dispatchers.Default) {
                while (true) session.generateFlow(prompt, SolTests.options(100)).collect { first.complete(Unit) }
            }
            first.await()
            job.cancelAndJoin()
            SolTests.check(job.isCancelled && !session.isBusy, "the generation is over")
        }
        SolTests.equal(alone(), session.generateFlow(prompt, dense).map { it.token }.toList())
    }
    test("a collector that throws") { session ->
        val thrown = runCatching { session.generateFlow(prompt, dense).onEach { error("mine") }.collect() }.exceptionOrNull()
        SolTests.equal("mine", thrown?.message ?: "")
        SolTests.equal(alone(), session.generateFlow(prompt, dense).map { it.token }.toList())
    }
    test("a call that ends the generation") { session ->
        val file = System.getenv("SOL_TEST_SCRATCH") + "/flow-ends"
        session.save(file)
        for (call in listOf({ session.stop() }, { session.rewind(2) }, { session.save(file) }, { session.restore(file) })) {
            val seen = ArrayList<Int>()
            session.generateFlow(prompt, dense).collect {
                seen += it.token
                if (seen.size == 3) call()
            }
            SolTests.equal(alone().take(3), seen)
            SolTests.check(!session.isBusy, "it is over")
        }
    }
    test("cancel and close by hand") { session ->
        val cancelled = runCatching { session.generateFlow(prompt, dense).collect { session.cancel() } }.exceptionOrNull()
        SolTests.check(cancelled is SolException.Cancelled, "$cancelled")
        val closed = runCatching { session.generateFlow(prompt, dense).collect { session.close() } }.exceptionOrNull()
        SolTests.check(closed is SolException, "$closed")
    }
    test("many flows at once") { _ ->
        val expected = alone()
        val all = (1..6).map { async(Dispatchers.Default) { model.newSession().use { s -> s.generateFlow(prompt, dense).map { it.token }.toList() } } }.awaitAll()
        for (tokens in all) SolTests.equal(expected, tokens)
    }
    test("another generation on the same session") { session ->
        val thrown = runCatching { session.generateFlow(prompt, dense).collect { session.start(prompt, dense) } }.exceptionOrNull()
        SolTests.check(thrown is SolException.Usage, "$thrown")
        SolTests.check(session.isBusy, "the other one goes on")
        SolTests.equal(alone()[0], session.next().token)
    }
    test("another generation before the next token is computed") { session ->
        val begun = CountDownLatch(1)
        val seen = ArrayList<Int>()
        val thrown = runCatching {
            session.generateFlow(prompt, dense).collect {
                seen += it.token
                if (seen.size > 1) return@collect
                repeat(64) { launch(Dispatchers.Default) { begun.await() } } // the flow's next step has to wait for a thread
                thread {
                    Thread.sleep(300)
                    session.start(prompt, dense)
                    begun.countDown()
                }
            }
        }.exceptionOrNull()
        SolTests.check(thrown is SolException.Usage, "$thrown")
        SolTests.equal(1, seen.size)
        SolTests.equal(alone()[0], session.next().token)
    }
    test("wrong options") { session ->
        val thrown = runCatching { session.generateFlow(prompt, generateOptions { budget(3.0) }).collect() }.exceptionOrNull()
        SolTests.check(thrown is SolException.Usage, "$thrown")
    }
    println("$passed passed, 0 failed")
}
